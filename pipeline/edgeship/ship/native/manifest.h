// edgeship.json of a GGUF artifact, as far as a runner needs it, and the acceptance files beside it.
#pragma once

#include "files.h"

#include <map>
#include <optional>
#include <string>
#include <vector>

struct Manifest {
    std::string directory, name, model_file;
    int32_t vocab_size, layers, hidden_size, context_length, default_context;
    std::vector<int32_t> eos;
    std::optional<double> size_budget_mb;
    std::optional<int> threads;
    std::map<std::string, Entry> files;

    // The path of a file that is about to be opened: named, there, and of the sealed size.
    std::string file(const std::string & name) const;
};

// Of the artifact at `path`: its directory, or the one above it, or a bundle.
Manifest read_manifest(const std::string & path);

struct ChatCase {
    std::string name, rendered;
    std::vector<int32_t> tokens, others;  // others: where llama.cpp makes special tokens of plain ones, as newer ones do
};

// Conversations whose template gave a text.
std::vector<ChatCase> read_chats(const Manifest & manifest);

struct Position {
    int32_t index;
    std::vector<int32_t> top_ids;
    std::vector<double> top_logits;
    double std;
};

struct GoldenCase {
    std::string name;
    std::vector<int32_t> tokens;
    std::vector<Position> positions;
};

struct Golden {
    std::vector<GoldenCase> cases;
    double tie_tolerance, kl_budget;
    int32_t context;  // tokens that a KV cache needs room for
};

extern const char * const GOLDEN;
extern const char * const FIDELITY;  // the float model's predictions; not in every artifact

Golden read_golden(const Manifest & manifest, const std::string & name);
