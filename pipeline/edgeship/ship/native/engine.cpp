#include "engine.h"

#include "machine.h"
#include "nfc.h"

#include <algorithm>
#include <mutex>

const char * const ENGINE_NAME = "llama.cpp of llama-cpp-python " LLAMA_VERSION;

static const int32_t CHUNK = 512;                       // tokens of a prompt per call, llama.cpp's own default
static const uint64_t BYTES_PER_THREAD = 4ull << 20;    // threads that have less to do wait for each other

static std::mutex guard;
static std::string first_error;

static void listen(ggml_log_level level, const char * text, void *) {
    const std::lock_guard<std::mutex> lock(guard);
    if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
        first_error = safe(text, 300);
    }
}

static Failure failure(Code code, const std::string & what, const std::string & hint) {
    const std::lock_guard<std::mutex> lock(guard);
    const std::string said = first_error.empty() ? "llama.cpp did not say why" : first_error;
    if (said.find("alloc") != std::string::npos) {
        return Failure(RESOURCE, what + ": not enough memory (" + said + ")", "a smaller context or a smaller model needs less");
    }
    return Failure(code, what + ": " + said, hint);
}

Model::Model(const std::string & path, bool vocabulary_only) : path(path), pointer(nullptr, llama_model_free) {
    llama_log_set(listen, nullptr);
    llama_model_params params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_MMAP;
    params.n_gpu_layers = 0;
    params.vocab_only = vocabulary_only;
    pointer.reset(llama_model_load_from_file(path.c_str(), params));
    if (!pointer) {
        throw failure(ARTIFACT, path + ": llama.cpp cannot load it", "check it with `verify`; a newer runner may know what this one does not");
    }
    if (llama_vocab_type(llama_model_get_vocab(pointer.get())) == LLAMA_VOCAB_TYPE_NONE) {
        throw Failure(ARTIFACT, path + ": it has no vocabulary, so there is no text to be had from it");
    }
}

int32_t Model::vocab_size() const {
    return llama_vocab_n_tokens(llama_model_get_vocab(pointer.get()));
}

bool Model::ends(int32_t token) const {
    return llama_vocab_is_eog(llama_model_get_vocab(pointer.get()), token);
}

std::vector<int32_t> Model::tokenize(const std::string & text) const {
    char pre[64] = "";
    llama_model_meta_val_str(pointer.get(), "tokenizer.ggml.pre", pre, sizeof pre);
    // llama.cpp does not normalize, and a GGUF file does not say that the checkpoint's tokenizer did.
    const std::string given = std::string(pre) == "qwen2" ? nfc(text) : text;
    std::vector<int32_t> out(given.size() + 8);
    const llama_vocab * vocab = llama_model_get_vocab(pointer.get());
    int32_t count = llama_tokenize(vocab, given.data(), given.size(), out.data(), out.size(), false, true);
    if (count < 0) {
        out.resize(-static_cast<int64_t>(count));
        count = llama_tokenize(vocab, given.data(), given.size(), out.data(), out.size(), false, true);
    }
    if (count < 0) {
        throw Failure(USAGE, "the text cannot be turned into tokens: llama.cpp refuses it");
    }
    out.resize(count);
    return out;
}

std::string Model::text_of(const std::vector<int32_t> & tokens) const {
    std::string out;
    for (int32_t token : tokens) {
        char piece[4096];
        const int32_t size = llama_token_to_piece(llama_model_get_vocab(pointer.get()), token, piece, sizeof piece, 0, false);
        out.append(piece, std::max(size, 0));
    }
    return out;
}

static void check_model(const Model & model, const Manifest & manifest) {
    const llama_model * found = model.pointer.get();
    if (llama_model_has_encoder(found) || !llama_model_has_decoder(found) || llama_model_is_diffusion(found)) {
        throw Failure(ARTIFACT, model.path + ": not a decoder; it cannot continue text");
    }
    if (model.vocab_size() != manifest.vocab_size || llama_model_n_layer(found) != manifest.layers ||
        llama_model_n_embd(found) != manifest.hidden_size) {
        throw Failure(ARTIFACT, model.path + ": the file is not the one that the artifact describes (vocabulary, layers or hidden size)",
                      "export the artifact again");
    }
}

static int choose_threads(const Manifest & manifest, int threads) {
    if (threads > 0 || manifest.threads) {
        return threads > 0 ? threads : std::min(*manifest.threads, good_cores());
    }
    uint64_t size = 0;
    for (const auto & [name, entry] : manifest.files) {
        size += entry.size;
    }
    return std::min<uint64_t>(good_cores(), 1 + size / BYTES_PER_THREAD);
}

Engine::Engine(const Manifest & manifest, int32_t context, int threads)
    : model(manifest.file(manifest.model_file)), context(context), threads(choose_threads(manifest, threads)),
      pointer_(nullptr, llama_free), chunk_(std::min(CHUNK, context)) {
    if (context < 1 || context > manifest.context_length) {
        throw Failure(USAGE, "a context of " + std::to_string(context) + " tokens was asked for; the model was made for 1 to " +
                                 std::to_string(manifest.context_length));
    }
    check_model(model, manifest);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = context;
    params.n_batch = params.n_ubatch = chunk_;
    params.n_outputs_max = 1;  // no memory for logits of a whole prompt
    params.n_threads = params.n_threads_batch = this->threads;
    params.type_k = params.type_v = GGML_TYPE_F16;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
    params.offload_kqv = params.op_offload = false;
    pointer_.reset(llama_init_from_model(model.pointer.get(), params));
    if (!pointer_) {
        throw failure(ENGINE, model.path + ": llama.cpp cannot open it for " + std::to_string(context) + " tokens",
                      "a smaller context needs less memory");
    }
}

const float * Engine::evaluate(const int32_t * tokens, size_t count) {
    if (length + count > static_cast<size_t>(context)) {
        throw Failure(CONTEXT, std::to_string(count) + " tokens do not fit: the context is " + std::to_string(context) +
                                   " tokens and " + std::to_string(length) + " are in use", "give a larger --context");
    }
    for (size_t start = 0; start < count; start += chunk_) {
        const int32_t size = std::min<size_t>(chunk_, count - start);
        const int32_t code = llama_decode(pointer_.get(), llama_batch_get_one(const_cast<int32_t *>(tokens) + start, size));
        if (code != 0) {
            throw failure(ENGINE, "llama.cpp could not run the model (code " + std::to_string(code) + ")", "a smaller context may help");
        }
        length += size;
    }
    const float * logits = llama_get_logits_ith(pointer_.get(), -1);
    if (!logits) {
        throw Failure(ENGINE, "llama.cpp gave no logits: the model does not predict tokens");
    }
    return logits;
}

void Engine::clear() {
    llama_memory_clear(llama_get_memory(pointer_.get()), false);
    length = 0;
}

int32_t best_of(const float * logits, int32_t count) {
    return static_cast<int32_t>(std::max_element(logits, logits + count) - logits);
}
