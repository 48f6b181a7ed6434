// JSON read strictly: bounded size and depth, no member twice, members by name and type. Failures are ARTIFACT.
#pragma once

#include "failure.h"

#include <cstdint>
#include <string>
#include <vector>

std::string read_bytes(const std::string & path, size_t limit);

json read_json(const std::string & path, size_t limit);

// An object inside a file; every failure names the file and the member.
struct Fields {
    const json & value;
    std::string file, path;

    Fields(const json & value, const std::string & file, const std::string & path = "");

    Failure error(const std::string & name, const std::string & problem) const;
    bool has(const char * name) const;
    const json & member(const char * name) const;
    std::string text(const char * name, size_t limit = 1000) const;
    int64_t integer(const char * name, int64_t low, int64_t high) const;
    double number(const char * name, double low, double high) const;
    const json & items(const char * name, size_t limit) const;
    std::vector<int32_t> integers(const char * name, int64_t low, int64_t high, size_t limit) const;
    std::vector<double> numbers(const char * name, double low, double high, size_t limit) const;
    Fields object(const char * name) const;
    Fields inner(const json & item, const std::string & place) const;
};
