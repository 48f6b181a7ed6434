// llama.cpp with one sequence, as edgeship_runtime's engine uses it: logits of the last token only.
#pragma once

#include "llama.h"
#include "manifest.h"

#include <memory>
#include <string>
#include <vector>

extern const char * const ENGINE_NAME;

// A loaded GGUF file: its vocabulary, and its weights where they were asked for.
class Model {
  public:
    Model(const std::string & path, bool vocabulary_only = false);

    std::vector<int32_t> tokenize(const std::string & text) const;
    std::string text_of(const std::vector<int32_t> & tokens) const;
    int32_t vocab_size() const;
    bool ends(int32_t token) const;

    std::string path;
    std::unique_ptr<llama_model, decltype(&llama_model_free)> pointer;
};

class Engine {
  public:
    // `threads` 0: the manifest's hint or what suits this machine.
    Engine(const Manifest & manifest, int32_t context, int threads);

    // Appends tokens and returns the logits after the last, [vocab_size], valid until the next call.
    const float * evaluate(const int32_t * tokens, size_t count);
    void clear();

    Model model;
    int32_t context, length = 0;
    int threads;

  private:
    std::unique_ptr<llama_context, decltype(&llama_free)> pointer_;
    int32_t chunk_;
};

int32_t best_of(const float * logits, int32_t count);
