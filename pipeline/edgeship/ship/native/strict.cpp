#include "strict.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <set>
#include <sys/stat.h>
#include <unistd.h>

static const int MAX_DEPTH = 64;
static const char * const DAMAGED =
    "the file is damaged or was edited; export the artifact again, or copy it again from where it came from";

std::string read_bytes(const std::string & path, size_t limit) {
    // O_NONBLOCK: opening a FIFO that nobody writes to must not hang before its type can be looked at.
    int file = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) {
        if (errno == ENOENT) {
            throw Failure(ARTIFACT, path + ": the file does not exist", DAMAGED);
        }
        throw Failure(ARTIFACT, path + ": cannot be read (" + strerror(errno) + ")", "check the path and its permissions");
    }
    struct stat found;
    if (fstat(file, &found) != 0 || !S_ISREG(found.st_mode)) {
        close(file);
        throw Failure(ARTIFACT, path + ": expected a regular file, found something else", DAMAGED);
    }
    std::string raw;
    char buffer[1 << 16];
    ssize_t count;
    while (raw.size() <= limit && (count = read(file, buffer, sizeof buffer)) > 0) {
        raw.append(buffer, count);
    }
    close(file);
    if (raw.size() > limit) {
        throw Failure(ARTIFACT, path + ": expected at most " + std::to_string(limit) + " bytes, found more; it is not read",
                      "no export writes a file this large");
    }
    return raw;
}


json read_json(const std::string & path, size_t limit) {
    const std::string raw = read_bytes(path, limit);
    std::vector<std::set<std::string>> seen;
    const json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json & parsed) {
        if (depth > MAX_DEPTH) {
            throw Failure(ARTIFACT, path + ": nested deeper than " + std::to_string(MAX_DEPTH) + " levels", DAMAGED);
        }
        if (event == json::parse_event_t::object_start) {
            seen.emplace_back();
        } else if (event == json::parse_event_t::object_end) {
            seen.pop_back();
        } else if (event == json::parse_event_t::key && !seen.back().insert(parsed.get<std::string>()).second) {
            throw Failure(ARTIFACT, path + ": member " + dump(parsed) + " is written twice; which one counts cannot be known",
                          DAMAGED);
        }
        return true;
    };
    try {
        return json::parse(raw, watch);
    } catch (const json::exception & error) {
        throw Failure(ARTIFACT, path + ": not JSON (" + safe(error.what()) + ")", DAMAGED);
    }
}

static std::string show(const json & value) {
    if (value.is_structured()) {
        return (value.is_object() ? "an object of " : "a list of ") + std::to_string(value.size());
    }
    return safe(dump(value), 60);
}

Fields::Fields(const json & value, const std::string & file, const std::string & path) : value(value), file(file), path(path) {
    if (!value.is_object()) {
        throw error("", "expected an object, found " + show(value));
    }
}

Failure Fields::error(const std::string & name, const std::string & problem) const {
    const std::string place = path + (path.empty() || name.empty() ? "" : ".") + name;
    return Failure(ARTIFACT, file + ": " + place + (place.empty() ? "" : ": ") + problem, DAMAGED);
}

bool Fields::has(const char * name) const {
    const auto found = value.find(name);
    return found != value.end() && !found->is_null();
}

const json & Fields::member(const char * name) const {
    const auto found = value.find(name);
    if (found == value.end()) {
        throw error(name, "the member is missing");
    }
    return *found;
}

std::string Fields::text(const char * name, size_t limit) const {
    const json & found = member(name);
    if (!found.is_string() || found.get_ref<const std::string &>().size() > limit) {
        throw error(name, "expected text of at most " + std::to_string(limit) + " bytes, found " + show(found));
    }
    return found.get<std::string>();
}

static int64_t whole(const Fields & fields, const std::string & name, const json & found, int64_t low, int64_t high) {
    // Of the two kinds of integers only the unsigned one holds numbers that the other cannot.
    const bool fits = found.is_number_integer() &&
                      !(found.is_number_unsigned() && found.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX));
    if (!fits || found.get<int64_t>() < low || found.get<int64_t>() > high) {
        throw fields.error(name, "expected a whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                                     ", found " + show(found));
    }
    return found.get<int64_t>();
}

static double real(const Fields & fields, const std::string & name, const json & found, double low, double high) {
    const double number = found.is_number() ? found.get<double>() : NAN;
    if (!(number >= low && number <= high)) {
        throw fields.error(name, "expected a number from " + dump(json(low)) + " to " + dump(json(high)) + ", found " + show(found));
    }
    return number;
}

int64_t Fields::integer(const char * name, int64_t low, int64_t high) const {
    return whole(*this, name, member(name), low, high);
}

double Fields::number(const char * name, double low, double high) const {
    return real(*this, name, member(name), low, high);
}

const json & Fields::items(const char * name, size_t limit) const {
    const json & found = member(name);
    if (!found.is_array() || found.size() > limit) {
        throw error(name, "expected a list of at most " + std::to_string(limit) + ", found " + show(found));
    }
    return found;
}

std::vector<int32_t> Fields::integers(const char * name, int64_t low, int64_t high, size_t limit) const {
    std::vector<int32_t> out;
    for (const json & each : items(name, limit)) {
        out.push_back(static_cast<int32_t>(whole(*this, name, each, low, high)));
    }
    return out;
}

std::vector<double> Fields::numbers(const char * name, double low, double high, size_t limit) const {
    std::vector<double> out;
    for (const json & each : items(name, limit)) {
        out.push_back(real(*this, name, each, low, high));
    }
    return out;
}

Fields Fields::object(const char * name) const {
    return Fields(member(name), file, path + (path.empty() ? "" : ".") + name);
}

Fields Fields::inner(const json & item, const std::string & place) const {
    return Fields(item, file, path + (path.empty() ? "" : ".") + place);
}
