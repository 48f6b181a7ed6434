#include "machine.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sched.h>
#include <set>
#include <sstream>
#include <sys/auxv.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

namespace {

// Linux: arch/arm64/include/uapi/asm/hwcap.h
const unsigned long FPHP = 1ul << 9, ASIMDHP = 1ul << 10, ASIMDDP = 1ul << 20, SVE = 1ul << 22;
const unsigned long I8MM = 1ul << 13;  // of AT_HWCAP2
const double SLOW = 0.5;               // of the fastest core's capacity

std::string read(const std::string & path) {
    std::ifstream file(path);
    std::stringstream out;
    out << file.rdbuf();
    std::string text = out.str().substr(0, 1 << 20);
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ' || text.back() == '\0')) {
        text.pop_back();
    }
    return text;
}

std::optional<double> number(const std::string & path) {
    const std::string text = read(path);
    char * end = nullptr;
    const double value = strtod(text.c_str(), &end);
    return text.empty() || *end ? std::nullopt : std::optional<double>(value);
}

// The value after "NAME:" at the beginning of a line; empty where there is none.
std::string line_of(const std::string & text, const std::string & name) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t colon = line.find(':');
        if (colon != std::string::npos && line.compare(0, name.size(), name) == 0 &&
            line.find_first_not_of(" \t", name.size()) == colon) {
            const size_t start = line.find_first_not_of(" \t", colon + 1);
            return start == std::string::npos ? "" : line.substr(start);
        }
    }
    return "";
}

std::string cpu_dir(int cpu) {
    return "/sys/devices/system/cpu/cpu" + std::to_string(cpu);
}

std::vector<int> usable() {
    std::vector<int> out;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &set)) {
                out.push_back(cpu);
            }
        }
    }
    return out.empty() ? std::vector<int>{0} : out;
}

json bytes_of(const std::string & meminfo, const char * name) {
    const std::string value = line_of(meminfo, name);
    return value.empty() ? json(nullptr) : json(strtoull(value.c_str(), nullptr, 10) * 1024);
}

}  // namespace

std::vector<std::string> features() {
    const unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
    std::vector<std::string> out;
    if (one & ASIMDDP) out.push_back("dotprod");
    if ((one & ASIMDHP) && (one & FPHP)) out.push_back("fp16");
    if (two & I8MM) out.push_back("i8mm");
    if (one & SVE) out.push_back("sve");
    return out;
}

// ggml says what it was compiled for; asking it runs none of that.
static std::vector<std::string> compiled() {
    std::vector<std::string> out;
    if (ggml_cpu_has_dotprod()) out.push_back("dotprod");
    if (ggml_cpu_has_fp16_va()) out.push_back("fp16");
    if (ggml_cpu_has_matmul_int8()) out.push_back("i8mm");
    if (ggml_cpu_has_sve()) out.push_back("sve");
    return out;
}

std::vector<std::string> foreign() {
    const std::vector<std::string> has = features();
    std::vector<std::string> out;
    for (const std::string & each : compiled()) {
        if (std::find(has.begin(), has.end(), each) == has.end()) {
            out.push_back(each);
        }
    }
    return out;
}

std::string kernels() {
    const std::vector<std::string> built = compiled();
    for (const char * best : {"i8mm", "dotprod"}) {
        if (std::find(built.begin(), built.end(), best) != built.end()) {
            return best;
        }
    }
    return "neon";
}

void become_best(char ** argv) {
    if (std::string(VARIANT) != "armv8.0" || getenv("EDGESHIP_RUNNER_STAY")) {
        return;
    }
    char self[4096];
    const ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    if (size <= 0) {
        return;
    }
    const std::string path(self, size);
    const std::vector<std::string> has = features();
    const auto all = [&](std::vector<const char *> needs) {
        return std::all_of(needs.begin(), needs.end(),
                           [&](const char * each) { return std::find(has.begin(), has.end(), each) != has.end(); });
    };
    const std::pair<const char *, bool> better[] = {{"-i8mm", all({"dotprod", "fp16", "i8mm"})},
                                                    {"-dotprod", all({"dotprod", "fp16"})}};
    for (const auto & [suffix, fits] : better) {
        const std::string beside = path + suffix;
        if (fits && access(beside.c_str(), X_OK) == 0) {
            execv(beside.c_str(), argv);  // comes back where it cannot; this build does it too, only slower
        }
    }
}

int good_cores() {
    std::map<int, double> capacity;
    std::set<std::string> cores;
    double most = 0;
    for (int cpu : usable()) {
        const std::string threads = read(cpu_dir(cpu) + "/topology/core_cpus_list");
        if (!threads.empty() && !cores.insert(threads).second) {
            continue;  // another thread of a core that was counted
        }
        // Its share of the fastest core's work where the kernel knows it; else the clock says about as much.
        capacity[cpu] = number(cpu_dir(cpu) + "/cpu_capacity").value_or(
            number(cpu_dir(cpu) + "/cpufreq/cpuinfo_max_freq").value_or(0));
        most = std::max(most, capacity[cpu]);
    }
    const auto good = [&](const auto & each) { return each.second >= most * SLOW; };
    return std::max<int>(1, std::count_if(capacity.begin(), capacity.end(), good));
}

std::string cpu_name() {
    const std::string info = read("/proc/cpuinfo");
    for (const std::string & name : {read("/proc/device-tree/model"), line_of(info, "Hardware"), line_of(info, "model name")}) {
        if (!name.empty()) {
            return safe(name, 100);
        }
    }
    utsname system;
    return uname(&system) == 0 ? system.machine : "unknown";
}

std::optional<double> load_average() {
    const std::string text = read("/proc/loadavg");  // Android lets no app read it
    return text.empty() ? std::nullopt : std::optional<double>(strtod(text.c_str(), nullptr));
}

std::optional<double> peak_rss_mb() {
    const std::string peak = line_of(read("/proc/self/status"), "VmHWM");
    return peak.empty() ? std::nullopt : std::optional<double>(strtod(peak.c_str(), nullptr) * 1024 / 1e6);
}

json board(const std::string & disk) {
    utsname system{};
    uname(&system);
    const std::string meminfo = read("/proc/meminfo");
    struct statvfs space;
    json free_disk = nullptr;
    if (statvfs(disk.c_str(), &space) == 0) {
        free_disk = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
    }
    const bool android = access("/system/build.prop", F_OK) == 0 || getenv("ANDROID_ROOT");
    const bool is_arm64 = std::string(system.machine) == "aarch64";
    return {{"model", cpu_name()},
            {"os", android ? "android" : "linux"},
            {"arch", is_arm64 ? "aarch64" : system.machine},
            {"bits", 64},
            {"libc", nullptr},
            {"python", nullptr},
            {"page_size", sysconf(_SC_PAGESIZE)},
            {"cores", {{{"kind", cpu_name()}, {"count", usable().size()}, {"mhz", nullptr}}}},
            {"isa", features()},
            {"ram_bytes", bytes_of(meminfo, "MemTotal")},
            {"ram_free_bytes", bytes_of(meminfo, "MemAvailable")},
            {"swap_bytes", bytes_of(meminfo, "SwapTotal")},
            {"swap_free_bytes", bytes_of(meminfo, "SwapFree")},
            {"disk_free_bytes", free_disk}};
}
