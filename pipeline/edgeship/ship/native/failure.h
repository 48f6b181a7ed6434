// What ends a command: a message, a hint, and an exit code that means what it means in edgeship-runtime.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

using json = nlohmann::ordered_json;

enum Code { OK = 0, USAGE = 2, ARTIFACT = 8, RESOURCE = 9, DEPENDENCY = 10, CONTEXT = 11, ENGINE = 12, VERIFY = 14, UNFIT = 16 };

struct Failure : std::runtime_error {
    Code code;
    std::string hint;

    Failure(Code code, const std::string & message, const std::string & hint = "")
        : std::runtime_error(message), code(code), hint(hint) {}
};

// {"error": ...} as edgeship-runtime prints it with --json.
json to_json(const Failure & failure);

// One line of text that no terminal obeys, of at most `limit` bytes.
std::string safe(const std::string & text, size_t limit = 300);

// JSON in ASCII: whatever the bytes were, what reads it gets no surprises.
std::string dump(const json & value, int indent = -1);
