#include "failure.h"

static const char * kind_of(Code code) {
    switch (code) {
        case USAGE: return "usage";
        case ARTIFACT: return "artifact";
        case RESOURCE: return "resource";
        case DEPENDENCY: return "dependency";
        case CONTEXT: return "context";
        case ENGINE: return "engine";
        case VERIFY: return "verify";
        case UNFIT: return "unfit";
        default: return "error";
    }
}

json to_json(const Failure & failure) {
    return {{"error",
             {{"kind", kind_of(failure.code)},
              {"message", failure.what()},
              {"hint", failure.hint},
              {"exit_code", static_cast<int>(failure.code)}}}};
}

std::string safe(const std::string & text, size_t limit) {
    std::string out;
    for (unsigned char c : text.substr(0, limit)) {
        out += c < 0x20 || c == 0x7f ? ' ' : static_cast<char>(c);
    }
    return text.size() > limit ? out + "..." : out;
}

std::string dump(const json & value, int indent) {
    return value.dump(indent, ' ', true, json::error_handler_t::replace);
}
