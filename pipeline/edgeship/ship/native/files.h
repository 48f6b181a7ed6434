// Names and bytes of an artifact's files.
#pragma once

#include "failure.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

struct Entry {
    uint64_t size;
    std::string sha256;
};

// Why a '/'-separated name may not be in a manifest; empty when it may.
std::string name_problem(const std::string & name);

// The path of `name` in `directory`; ARTIFACT where the name is unsafe or a link leads out of there.
std::string resolve_inside(const std::string & directory, const std::string & name);

// Every difference between `directory` and `files`, one line each, by name; names in `unlisted` need no entry.
std::vector<std::string> compare_files(const std::string & directory, const std::map<std::string, Entry> & files,
                                       const std::string & unlisted);
