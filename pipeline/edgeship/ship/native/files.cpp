#include "files.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

extern "C" {
#include "sha256/sha256.h"
}

std::string name_problem(const std::string & name) {
    if (name.empty() || name.size() > 500) {
        return "expected a name of 1 to 500 bytes";
    }
    if (name.find('\\') != std::string::npos ||
        std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
        return "it holds characters that not every file system takes";
    }
    for (size_t start = 0; start <= name.size();) {
        const size_t end = std::min(name.find('/', start), name.size());
        const std::string part = name.substr(start, end - start);
        if (part.empty() || part == "." || part == "..") {
            return "expected a path inside the directory, without '..', '.', '//' or a leading '/'";
        }
        start = end + 1;
    }
    return "";
}

static std::string real(const std::string & path) {
    const std::unique_ptr<char, decltype(&free)> found(realpath(path.c_str(), nullptr), free);
    return found ? found.get() : "";
}

std::string resolve_inside(const std::string & directory, const std::string & name) {
    const std::string problem = name_problem(name);
    if (!problem.empty()) {
        throw Failure(ARTIFACT, directory + ": file name " + dump(name) + ": " + problem, "do not use this artifact");
    }
    const std::string path = directory + "/" + name;
    struct stat found;
    if (lstat(path.c_str(), &found) != 0 && errno == ENOENT) {
        return path;
    }
    const std::string top = real(directory), there = real(path);
    if (top.empty() || there.compare(0, top.size() + 1, top + "/") != 0) {
        throw Failure(ARTIFACT, path + ": a link leads out of the artifact directory; it is not followed",
                      "do not use this artifact");
    }
    return path;
}

// The digest in hex; empty, with errno set, where the file cannot be read.
static std::string digest_of(const std::string & path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return "";
    }
    sha256_t state;
    sha256_init(&state);
    std::vector<unsigned char> buffer(1 << 20);
    ssize_t count;
    while ((count = read(file, buffer.data(), buffer.size())) > 0) {
        sha256_update(&state, buffer.data(), count);
    }
    const int failed = count < 0 ? errno : 0;
    close(file);
    errno = failed;
    if (failed) {
        return "";
    }
    unsigned char digest[32];
    sha256_final(&state, digest);
    std::string hex;
    for (unsigned char byte : digest) {
        char two[3];
        snprintf(two, sizeof two, "%02x", byte);
        hex += two;
    }
    return hex;
}

static std::string compare(const std::string & directory, const std::string & name, const Entry & entry) {
    try {
        const std::string path = resolve_inside(directory, name);
        struct stat found;
        if (stat(path.c_str(), &found) != 0) {
            return errno == ENOENT ? "the file is named in the manifest and does not exist"
                                   : std::string("cannot be read (") + strerror(errno) + ")";
        }
        if (!S_ISREG(found.st_mode)) {
            return "expected a regular file, found something else";
        }
        if (static_cast<uint64_t>(found.st_size) != entry.size) {
            return "expected " + std::to_string(entry.size) + " bytes, found " + std::to_string(found.st_size) +
                   ": the file was cut short or replaced";
        }
        const std::string digest = digest_of(path);
        if (digest.empty()) {
            return std::string("cannot be read (") + strerror(errno) + ")";
        }
        return digest == entry.sha256 ? "" : "the bytes are not those that were sealed (sha256 differs)";
    } catch (const Failure & failure) {
        return failure.what();
    }
}

// Names of everything in a directory that is no directory itself; links are not followed.
static void walk(const std::string & directory, const std::string & prefix, std::vector<std::string> & out) {
    const std::unique_ptr<DIR, decltype(&closedir)> open_one(opendir(directory.c_str()), closedir);
    if (!open_one || out.size() > 100000) {
        return;
    }
    while (const dirent * each = readdir(open_one.get())) {
        const std::string name = each->d_name;
        if (name == "." || name == "..") {
            continue;
        }
        struct stat found;
        if (lstat((directory + "/" + name).c_str(), &found) == 0 && S_ISDIR(found.st_mode)) {
            walk(directory + "/" + name, prefix + name + "/", out);
        } else {
            out.push_back(prefix + name);
        }
    }
}

std::vector<std::string> compare_files(const std::string & directory, const std::map<std::string, Entry> & files,
                                       const std::string & unlisted) {
    std::map<std::string, std::string> problems;
    for (const auto & [name, entry] : files) {
        const std::string problem = compare(directory, name, entry);
        if (!problem.empty()) {
            problems[name] = problem;
        }
    }
    std::vector<std::string> names;
    walk(directory, "", names);
    for (const std::string & name : names) {
        if (name != unlisted && !files.count(name)) {
            problems[name] = "the file is not named in the manifest";
        }
    }
    std::vector<std::string> lines;
    for (const auto & [name, problem] : problems) {
        lines.push_back(safe(name) + ": " + problem);
    }
    return lines;
}
