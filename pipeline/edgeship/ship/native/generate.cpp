// The likeliest tokens after a text or after token ids: what tests compare, and a first look at a model.
#include "commands.h"
#include "engine.h"
#include "machine.h"

#include <algorithm>

Answer generate(const Options & o) {
    const Manifest manifest = read_manifest(o.artifact);
    std::vector<int32_t> ids = o.ids;
    if (ids.empty()) {
        ids = Model(manifest.file(manifest.model_file), true).tokenize(o.text);
    }
    if (ids.empty()) {
        throw Failure(USAGE, "generate: there is no text to continue", "give --text TEXT or --ids 1,2,3");
    }
    for (int32_t id : ids) {
        if (id < 0 || id >= manifest.vocab_size) {
            throw Failure(ENGINE, "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(manifest.vocab_size));
        }
    }
    const int64_t wanted = static_cast<int64_t>(ids.size()) + o.decode_tokens;
    Engine engine(manifest, o.context ? o.context : std::min<int64_t>(wanted, manifest.context_length), o.threads);
    std::vector<int32_t> tokens;
    const float * logits = engine.evaluate(ids.data(), ids.size());
    std::string finish = "length";
    while (static_cast<int>(tokens.size()) < o.decode_tokens) {
        int32_t token = best_of(logits, manifest.vocab_size);
        if (std::find(manifest.eos.begin(), manifest.eos.end(), token) != manifest.eos.end()) {
            finish = "stop";
            break;
        }
        tokens.push_back(token);
        if (engine.length == engine.context) {
            finish = "context";
            break;
        }
        logits = engine.evaluate(&token, 1);
    }
    const std::string text = engine.model.text_of(tokens);
    return {{{"prompt_ids", ids}, {"token_ids", tokens}, {"text", text}, {"finish_reason", finish}, {"kernels", kernels()}}, text, OK};
}
