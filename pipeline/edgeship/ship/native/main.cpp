// Commands, options, and one answer: in a process of its own, so that what ends inside llama.cpp ends as an error here.
#include "commands.h"
#include "ggml.h"
#include "machine.h"

#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static const char * const USAGE_TEXT =
    "usage: edgeship-runner COMMAND [ARTIFACT] [options] [--json]\n"
    "\n"
    "  verify ARTIFACT     sha256 of every file, token ids, logits and tokens against the golden ones\n"
    "  bench ARTIFACT      load time, time to the first token, tokens per second, peak memory\n"
    "  generate ARTIFACT   the likeliest tokens after --text TEXT or --ids 1,2,3\n"
    "  doctor [ARTIFACT]   what this machine is, and whether it can run this\n"
    "\n"
    "  --threads N  --context N  --repeats N  --prompt-tokens N  --decode-tokens N\n"
    "\n"
    "exit codes: 0 done, 2 usage, 8 the artifact is not what it should be, 9 memory, 12 the engine failed,\n"
    "14 verify failed, 16 this machine cannot run it\n"
    "example: edgeship-runner verify artifact --json\n";

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

json rounded(double value, int digits) {
    const double scale = std::pow(10, digits);
    return std::isfinite(value) ? json(std::round(value * scale) / scale) : json(nullptr);
}

static int number(const std::string & name, const std::string & text, int low) {
    char * end = nullptr;
    errno = 0;
    const long value = strtol(text.c_str(), &end, 10);
    if (text.empty() || *end || errno || value < low || value > INT_MAX) {
        throw Failure(USAGE, name + ": expected a whole number from " + std::to_string(low) + ", found " + dump(safe(text, 40)));
    }
    return static_cast<int>(value);
}

static std::vector<int32_t> list(const std::string & text) {
    std::vector<int32_t> out;
    for (size_t start = 0; start <= text.size();) {
        const size_t comma = std::min(text.find(',', start), text.size());
        out.push_back(number("--ids", text.substr(start, comma - start), 0));
        start = comma + 1;
    }
    return out;
}

static Options parse(const std::vector<std::string> & words) {
    Options made;
    const std::map<std::string, int *> numbers = {{"--threads", &made.threads},
                                                  {"--context", &made.context},
                                                  {"--repeats", &made.repeats},
                                                  {"--prompt-tokens", &made.prompt_tokens},
                                                  {"--decode-tokens", &made.decode_tokens}};
    for (size_t i = 1; i < words.size(); i++) {
        const std::string & word = words[i];
        if (word == "--json") {
            continue;
        }
        if (word.compare(0, 2, "--") != 0) {
            if (!made.artifact.empty()) {
                throw Failure(USAGE, "unknown argument: " + dump(safe(word, 80)), "edgeship-runner --help");
            }
            made.artifact = word;
            continue;
        }
        const std::string value = i + 1 < words.size() ? words[++i] : "";
        const auto found = numbers.find(word);
        if (found != numbers.end()) {
            *found->second = number(word, value, word == "--decode-tokens" ? 2 : 1);
        } else if (word == "--text") {
            made.text = value;
        } else if (word == "--ids") {
            made.ids = list(value);
        } else if (word != "--engine" || value != "llamacpp") {  // edgeship-runtime's option: there is one engine here
            throw Failure(USAGE, "unknown option: " + dump(safe(word + " " + value, 80)), "edgeship-runner --help");
        }
    }
    return made;
}

static Answer answer(const std::vector<std::string> & words) {
    const std::map<std::string, Answer (*)(const Options &)> commands = {
        {"verify", verify}, {"bench", bench}, {"generate", generate}, {"doctor", doctor}};
    const auto command = words.empty() ? commands.end() : commands.find(words[0]);
    if (command == commands.end()) {
        throw Failure(USAGE, "expected a command: verify, bench, generate or doctor", "edgeship-runner --help");
    }
    const Options options = parse(words);
    if (words[0] != "doctor" && options.artifact.empty()) {
        throw Failure(USAGE, "expected an artifact's directory", "edgeship-runner --help");
    }
    const std::vector<std::string> lacking = foreign();
    if (words[0] != "doctor" && !lacking.empty()) {
        throw Failure(UNFIT, std::string("this runner (") + VARIANT + ") was built for " + lacking[0] + ", which this processor lacks",
                      "use edgeship-runner, which every 64-bit ARM processor runs");
    }
    return command->second(options);
}

static int print(const Failure & failure, bool as_json) {
    if (as_json) {
        puts(dump(to_json(failure), 2).c_str());
    } else {
        fprintf(stderr, "error: %s\n", failure.what());
        if (!failure.hint.empty()) {
            fprintf(stderr, "\nhint: %s\n", failure.hint.c_str());
        }
    }
    return failure.code;
}

static bool answers_in_json = false;

// What ggml calls before it would end the process: there is no way back, but there are words.
static void give_up(const char * said) {
    const std::string text = safe(said);
    const size_t name = text.rfind('/');  // of the source file; the path of the machine it was built on says nothing
    print(Failure(ENGINE, "llama.cpp gave up: " + (name == std::string::npos ? text : text.substr(name + 1)),
                  "the file may be damaged: run `verify`, which checks every hash first"), answers_in_json);
    fflush(stdout);
    _exit(ENGINE);
}

static int work(const std::vector<std::string> & words, bool as_json) {
    int code;
    answers_in_json = as_json;
    setenv("GGML_NO_BACKTRACE", "1", 1);  // it would start a debugger
    ggml_set_abort_callback(give_up);
    try {
        const Answer made = answer(words);
        puts((as_json ? dump(made.body, 2) : made.text).c_str());
        code = made.code;
    } catch (const Failure & failure) {
        code = print(failure, as_json);
    } catch (const std::bad_alloc &) {
        code = print(Failure(RESOURCE, "not enough memory", "a smaller context or a smaller model needs less"), as_json);
    } catch (const std::exception & error) {
        code = print(Failure(ENGINE, std::string("failed: ") + safe(error.what())), as_json);
    }
    return fflush(stdout) == 0 ? code : 1;
}

static pid_t child = 0;

static void pass_on(int signal) {
    kill(child, signal);
}

int main(int argc, char ** argv) {
    become_best(argv);
    const std::vector<std::string> words(argv + 1, argv + argc);
    bool as_json = false;
    for (const std::string & word : words) {
        if (word == "--help" || word == "-h") {
            fputs(USAGE_TEXT, stdout);
            return OK;
        }
        as_json = as_json || word == "--json";
    }
    child = fork();
    if (child < 0) {
        return work(words, as_json);
    }
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);  // whoever kills this process means both
        _exit(work(words, as_json));
    }
    for (int each : {SIGHUP, SIGINT, SIGTERM}) {
        signal(each, pass_on);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status)) {
        return WEXITSTATUS(status);
    }
    const int ended = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (ended == SIGHUP || ended == SIGINT || ended == SIGTERM) {
        return 128 + ended;
    }
    const char * hint = ended == SIGKILL ? "that is often too little memory: use a smaller model or context"
                                         : "the file may be damaged: run `verify`, which checks every hash first";
    print(Failure(ended == SIGKILL ? RESOURCE : ENGINE, "the engine was ended by signal " + std::to_string(ended), hint), as_json);
    return ended == SIGKILL ? RESOURCE : ENGINE;
}
