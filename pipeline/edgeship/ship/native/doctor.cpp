// What this machine is, and whether this build and the artifact can run on it: the members that edgeship-runtime's has.
#include "commands.h"
#include "machine.h"
#include "manifest.h"

static const uint64_t WORK_BYTES = 60000000;  // the program, and activations of a prompt

static std::string joined(const std::vector<std::string> & words) {
    std::string out;
    for (const std::string & each : words) {
        out += (out.empty() ? "" : ", ") + each;
    }
    return out;
}

static std::string megabytes(uint64_t bytes) {
    return std::to_string(bytes / 1000000) + " MB";
}

Answer doctor(const Options & options) {
    const std::vector<std::string> lacking = foreign();
    const json device = board(options.artifact.empty() ? "." : options.artifact);
    json findings = json::array(), artifact = nullptr;
    const auto say = [&](const char * level, const std::string & what, const std::string & hint) {
        findings.push_back({{"level", level}, {"what", what}, {"hint", hint}});
    };
    json state = {{"version", LLAMA_VERSION}, {"state", "ok"}, {"detail", ""}, {"kernels", kernels()}};
    if (!lacking.empty()) {
        state["state"] = "crashes";
        state["detail"] = "SIGILL: built for " + joined(lacking) + ", which this processor lacks";
        say("error", std::string("this runner (") + VARIANT + ") was built for " + joined(lacking) + ", which this processor lacks",
            "use edgeship-runner, which every 64-bit ARM processor runs");
    }
    if (!options.artifact.empty()) {
        const Manifest manifest = read_manifest(options.artifact);
        const uint64_t need = manifest.files.at(manifest.model_file).size + WORK_BYTES;
        artifact = {{"name", manifest.name}, {"engine", "llamacpp"}, {"need_bytes", need}};
        const json & all = device["ram_bytes"], & free = device["ram_free_bytes"];
        if (all.is_number() && need > all.get<uint64_t>()) {
            say("error", "the artifact needs about " + megabytes(need) + " of memory, and the machine has " + megabytes(all), "use a smaller model");
        } else if (free.is_number() && need > free.get<uint64_t>()) {
            say("warning", "the artifact needs about " + megabytes(need) + " of memory, and " + megabytes(free) + " are free", "close other apps");
        }
    }
    int code = OK;
    for (const json & each : findings) {
        code = each["level"] == "error" ? UNFIT : code;
    }
    const json body = {{"schema", 1},
                       {"device", device},
                       {"engines", {{"llamacpp", state}}},
                       {"findings", findings},
                       {"artifact", artifact},
                       {"runner", {{"version", RUNNER_VERSION}, {"variant", VARIANT}}}};
    std::string text = "machine      " + device["model"].get<std::string>() + "\nfeatures     " + joined(features()) +
                       "\nrunner       " + RUNNER_VERSION + ", " + VARIANT + ", kernels " + kernels();
    for (const json & each : findings) {
        text += "\n" + each["level"].get<std::string>() + ": " + each["what"].get<std::string>() + "\n  " + each["hint"].get<std::string>();
    }
    return {body, text, code};
}
