// What edgeship_runtime/bench.py measures, in the same way: medians over greedy answers to one prompt.
#include "commands.h"
#include "engine.h"
#include "machine.h"

#include <algorithm>
#include <sys/utsname.h>

static const int64_t STRIDE = 7919;  // a prime: prompts walk the vocabulary without repeating themselves

static double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

static json or_null(const std::optional<double> & value, int digits) {
    return value ? rounded(*value, digits) : json(nullptr);
}

Answer bench(const Options & o) {
    if (o.prompt_tokens < 1 || o.decode_tokens < 2 || o.repeats < 1) {
        throw Failure(USAGE, "bench: expected at least 1 for the prompt, 2 for decoding and 1 for repeats");
    }
    const auto before = load_average();
    const Manifest manifest = read_manifest(o.artifact);
    const int64_t wanted = static_cast<int64_t>(o.prompt_tokens) + o.decode_tokens;
    const int32_t context = o.context ? o.context : std::min<int64_t>(wanted, manifest.context_length);
    const int32_t prompt = std::min(o.prompt_tokens, context - o.decode_tokens);
    if (prompt < 1) {
        throw Failure(USAGE, "bench: " + std::to_string(o.decode_tokens) + " tokens do not fit into a context of " +
                                 std::to_string(context) + " beside a prompt");
    }
    const double start = seconds();
    Engine engine(manifest, context, o.threads);
    const double load = seconds() - start;
    std::vector<int32_t> ids;
    for (int64_t place = 1; place <= prompt; place++) {
        ids.push_back(place * STRIDE % manifest.vocab_size);
    }
    std::vector<double> first, prefill, decode;
    for (int turn = 0; turn < o.repeats; turn++) {
        fprintf(stderr, "answer %d of %d\n", turn + 1, o.repeats);
        engine.clear();
        const double began = seconds();
        int32_t token = best_of(engine.evaluate(ids.data(), ids.size()), manifest.vocab_size);
        const double there = seconds();
        for (int step = 1; step < o.decode_tokens; step++) {
            token = best_of(engine.evaluate(&token, 1), manifest.vocab_size);
        }
        first.push_back(there - began);
        prefill.push_back(prompt / (there - began));
        decode.push_back((o.decode_tokens - 1) / (seconds() - there));
    }
    utsname system{};
    uname(&system);
    const json body = {{"artifact", manifest.name},
                       {"engine", ENGINE_NAME},
                       {"kernels", kernels()},
                       {"threads", engine.threads},
                       {"context", context},
                       {"prompt_tokens", prompt},
                       {"decode_tokens", o.decode_tokens},
                       {"repeats", o.repeats},
                       {"load_s", rounded(load, 3)},
                       {"ttft_s", rounded(median(first), 4)},
                       {"prefill_tokens_per_s", rounded(median(prefill), 1)},
                       {"decode_tokens_per_s", rounded(median(decode), 1)},
                       {"peak_rss_mb", or_null(peak_rss_mb(), 1)},
                       {"cpu", cpu_name()},
                       {"load_average", or_null(before, 2)},
                       {"system", std::string(system.sysname) + " " + system.machine},
                       {"python", nullptr},
                       {"edgeship_runtime", RUNNER_VERSION}};
    const std::string text = "load         " + dump(body["load_s"]) + " s\nfirst token  " + dump(body["ttft_s"]) + " s after " +
                             std::to_string(prompt) + " tokens\nprefill      " + dump(body["prefill_tokens_per_s"]) +
                             " tokens/s\ndecode       " + dump(body["decode_tokens_per_s"]) + " tokens/s, " +
                             std::to_string(engine.threads) + " threads, kernels " + kernels() + "\npeak memory  " +
                             dump(body["peak_rss_mb"]) + " MB";
    return {body, text, OK};
}
