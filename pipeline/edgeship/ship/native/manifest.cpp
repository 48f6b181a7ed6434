#include "manifest.h"

#include "strict.h"

#include <algorithm>
#include <set>
#include <sys/stat.h>

static const char * const MANIFEST = "edgeship.json";
static const char * const CHATS = "acceptance/chats.json";
const char * const GOLDEN = "acceptance/golden.json";
const char * const FIDELITY = "acceptance/fidelity.json";

// Limits are those of edgeship_runtime.
static const int64_t MAX_VOCAB = 1 << 24, MAX_CONTEXT = 1 << 24, MAX_SIZE = int64_t(1) << 50;
static const size_t MAX_MANIFEST = 1 << 20, MAX_ACCEPTANCE = 1 << 24;
static const size_t MAX_FILES = 10000, MAX_CASES = 1000, MAX_TOKENS = 1 << 20, MAX_TEXT = 1 << 22, MAX_TOP = 100;
static const double MAX_LOGIT = 1e6, MAX_TIE_TOLERANCE = 0.5;

static bool exists(const std::string & path) {
    struct stat found;
    return stat(path.c_str(), &found) == 0;
}

static std::string locate(const std::string & path) {
    for (const char * inside : {"", "/gguf", "/artifact"}) {
        if (exists(path + inside + "/" + MANIFEST)) {
            return path + inside;
        }
    }
    if (exists(path + "/onnx/" + MANIFEST)) {
        throw Failure(ARTIFACT, path + ": an ONNX artifact, and this runner runs GGUF", "export it with --format gguf");
    }
    throw Failure(ARTIFACT, path + ": no artifact here: looked for " + MANIFEST + " in it, in gguf/ and in artifact/",
                  "give the directory that `edgeship export` or `edgeship bundle` made");
}

// Numbers of a version such as 0.3.36.
static std::vector<int> numbers(const std::string & version) {
    std::vector<int> out;
    int number = -1;
    for (char c : version.substr(0, 40) + ".") {
        if (c >= '0' && c <= '9' && number < 1000000) {
            number = (number < 0 ? 0 : number * 10) + (c - '0');
        } else if (number >= 0) {
            out.push_back(number);
            number = -1;
        }
    }
    return out;
}

static void check_version(const Fields & top) {
    const Fields versions = top.object("versions");
    if (!versions.has("llama-cpp-python")) {
        return;
    }
    const std::string wanted = versions.text("llama-cpp-python", 100);
    if (wanted.compare(0, 2, ">=") == 0 && numbers(LLAMA_VERSION) < numbers(wanted)) {
        throw Failure(DEPENDENCY, "the artifact needs the llama.cpp of llama-cpp-python " + safe(wanted) + ", and this runner has that of " + LLAMA_VERSION,
                      "send a newer runner: edgeship runner-android");
    }
}

static std::map<std::string, Entry> read_files(const Fields & top) {
    std::map<std::string, Entry> files;
    const Fields listed = top.object("files");
    if (listed.value.size() > MAX_FILES) {
        throw top.error("files", "expected at most " + std::to_string(MAX_FILES) + " files");
    }
    for (const auto & [name, value] : listed.value.items()) {
        const std::string problem = name_problem(name);
        if (!problem.empty()) {
            throw top.error("files", "file name " + dump(name) + ": " + problem);
        }
        const Fields entry = listed.inner(value, name);
        const std::string digest = entry.text("sha256", 64);
        if (digest.size() != 64 || digest.find_first_not_of("0123456789abcdef") != std::string::npos) {
            throw entry.error("sha256", "expected 64 lower-case hex digits");
        }
        files[name] = {static_cast<uint64_t>(entry.integer("size", 0, MAX_SIZE)), digest};
    }
    return files;
}

Manifest read_manifest(const std::string & path) {
    Manifest made;
    made.directory = locate(path);
    const std::string file = made.directory + "/" + MANIFEST;
    resolve_inside(made.directory, MANIFEST);
    const json value = read_json(file, MAX_MANIFEST);
    const Fields top(value, file);
    if (top.integer("schema", 0, INT32_MAX) != 1) {
        throw Failure(ARTIFACT, file + ": schema version " + dump(top.member("schema")) + "; this runner knows 1",
                      "a newer artifact needs a newer runner: edgeship runner-android");
    }
    made.name = top.text("name", 200);
    if (top.text("format", 20) != "gguf") {
        throw Failure(ARTIFACT, made.directory + ": an artifact of the format " + safe(top.text("format", 20)) + ", and this runner runs GGUF",
                      "export it with --format gguf");
    }
    const Fields model = top.object("model");
    if (model.has("task") && model.text("task", 100) != "text-generation") {
        throw model.error("task", "this runner generates text");
    }
    made.vocab_size = model.integer("vocab_size", 1, MAX_VOCAB);
    made.layers = model.integer("layers", 0, 1 << 20);
    made.hidden_size = model.integer("hidden_size", 0, 1 << 24);
    made.context_length = model.integer("context_length", 1, MAX_CONTEXT);
    made.default_context = model.integer("default_context", 1, made.context_length);
    made.eos = model.integers("eos_token_ids", 0, made.vocab_size - 1, 64);
    const Fields budgets = top.object("budgets"), hints = top.object("hints");
    if (budgets.has("size_mb")) {
        made.size_budget_mb = budgets.number("size_mb", 0, 1e9);
    }
    if (hints.has("threads")) {
        made.threads = static_cast<int>(hints.integer("threads", 1, 4096));
    }
    check_version(top);
    made.files = read_files(top);
    for (const auto & [name, entry] : made.files) {  // sorted: the first of a split model
        if (made.model_file.empty() && name.size() > 5 && name.compare(name.size() - 5, 5, ".gguf") == 0) {
            made.model_file = name;
        }
    }
    if (made.model_file.empty()) {
        throw top.error("files", "no file of the name *.gguf");
    }
    return made;
}

std::string Manifest::file(const std::string & name) const {
    const auto entry = files.find(name);
    if (entry == files.end()) {
        throw Failure(ARTIFACT, directory + ": " + name + " is needed and " + MANIFEST + " does not name it",
                      "an unnamed file is not trusted: export the artifact again rather than adding files to it");
    }
    const std::string path = resolve_inside(directory, name);
    const char * hint = "run `verify` on the directory, or copy it again from where it came from";
    struct stat found;
    if (stat(path.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) {
        throw Failure(ARTIFACT, path + ": the file is needed and does not exist", hint);
    }
    if (static_cast<uint64_t>(found.st_size) != entry->second.size) {
        throw Failure(ARTIFACT, path + ": expected " + std::to_string(entry->second.size) + " bytes, found " +
                                    std::to_string(found.st_size) + ": the file was cut short or replaced", hint);
    }
    return path;
}

static json read_acceptance(const Manifest & manifest, const std::string & name, std::string & path) {
    path = manifest.file(name);
    json value = read_json(path, MAX_ACCEPTANCE);
    if (Fields(value, path).integer("schema", 0, INT32_MAX) != 1) {
        throw Failure(ARTIFACT, path + ": schema version " + dump(value["schema"]) + "; this runner knows 1",
                      "a newer artifact needs a newer runner: edgeship runner-android");
    }
    return value;
}

std::vector<ChatCase> read_chats(const Manifest & manifest) {
    std::string path;
    const json value = read_acceptance(manifest, CHATS, path);
    const Fields top(value, path);
    std::vector<ChatCase> cases;
    int place = 0;
    for (const json & item : top.items("cases", MAX_CASES)) {
        const Fields each = top.inner(item, "cases[" + std::to_string(place++) + "]");
        if (!each.has("error")) {
            const char * others = each.has("gguf_token_ids") ? "gguf_token_ids" : "token_ids";
            cases.push_back({each.text("name"), each.text("rendered", MAX_TEXT),
                             each.integers("token_ids", 0, manifest.vocab_size - 1, MAX_TOKENS),
                             each.integers(others, 0, manifest.vocab_size - 1, MAX_TOKENS)});
        }
    }
    return cases;
}

static Position read_position(const Fields & place, int32_t low, int32_t high, int32_t vocab) {
    Position made{static_cast<int32_t>(place.integer("index", low, high)),
                  place.integers("top_ids", 0, vocab - 1, MAX_TOP),
                  place.numbers("top_logits", -MAX_LOGIT, MAX_LOGIT, MAX_TOP), place.number("std", 0, MAX_LOGIT)};
    const std::set<int32_t> different(made.top_ids.begin(), made.top_ids.end());
    if (made.top_ids.empty() || different.size() != made.top_ids.size() || made.top_ids.size() != made.top_logits.size()) {
        throw place.error("top_ids", "expected different ids, one for each of the logits");
    }
    if (!std::is_sorted(made.top_logits.rbegin(), made.top_logits.rend())) {
        throw place.error("top_logits", "expected the largest first");
    }
    return made;
}

Golden read_golden(const Manifest & manifest, const std::string & name) {
    std::string path;
    const json value = read_acceptance(manifest, name, path);
    const Fields top(value, path);
    Golden made{{}, top.number("tie_tolerance", 0, MAX_TIE_TOLERANCE), 0, 1};
    if (name == FIDELITY) {
        made.kl_budget = top.number("kl_budget", 0, MAX_LOGIT);
    }
    int number = 0;
    for (const json & item : top.items("cases", MAX_CASES)) {
        const Fields each = top.inner(item, "cases[" + std::to_string(number++) + "]");
        GoldenCase one{each.text("name"), each.integers("prompt_ids", 0, manifest.vocab_size - 1, MAX_TOKENS), {}};
        if (one.tokens.empty()) {
            throw each.error("prompt_ids", "expected at least one token");
        }
        const auto more = each.integers("continuation", 0, manifest.vocab_size - 1, MAX_TOKENS);
        one.tokens.insert(one.tokens.end(), more.begin(), more.end());
        int place = 0;
        for (const json & position : each.items("positions", one.tokens.size())) {
            const int32_t low = one.positions.empty() ? 0 : one.positions.back().index + 1;
            const Fields there = each.inner(position, "positions[" + std::to_string(place++) + "]");
            one.positions.push_back(read_position(there, low, one.tokens.size() - 1, manifest.vocab_size));
        }
        made.context = std::max<int32_t>(made.context, one.tokens.size());
        made.cases.push_back(one);
    }
    if (made.context > manifest.context_length) {
        throw top.error("cases", "a case of " + std::to_string(made.context) + " tokens does not fit the model's " +
                                     std::to_string(manifest.context_length));
    }
    return made;
}
