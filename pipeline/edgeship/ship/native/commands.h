// The commands, each with one JSON answer in the form of edgeship-runtime's.
#pragma once

#include "failure.h"

#include <optional>
#include <string>
#include <vector>

struct Options {
    std::string artifact, text;
    std::vector<int32_t> ids;
    int threads = 0;      // 0: what suits the machine
    int32_t context = 0;  // 0: what the command needs
    int prompt_tokens = 512, decode_tokens = 64, repeats = 3;
};

struct Answer {
    json body;
    std::string text;  // for people
    int code;
};

Answer verify(const Options & options);
Answer bench(const Options & options);
Answer generate(const Options & options);
Answer doctor(const Options & options);

double seconds();
json rounded(double value, int digits);
