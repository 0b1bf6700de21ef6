#include "cli/info/machine.h"

#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <thread>

#include "cli/info/version.h"
#include "cli/words.h"
#include "gpu/device_facts.h"
#include "gpu/tensor.h"

namespace moe {
namespace {

/// The value of the first line "name : value" of /proc/cpuinfo or /proc/meminfo.
std::string proc_value(const char* file, const std::string& name) {
    std::ifstream lines(file);
    for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with(name)) continue;
        const std::size_t start = line.find_first_not_of(" \t", line.find(':') + 1);
        return start == std::string::npos ? "" : line.substr(start);
    }
    return "";
}

std::string cpu_model() {
    const std::string model = proc_value("/proc/cpuinfo", "model name");
    return model.empty() ? "a CPU that does not say its name" : model;
}

std::string host_memory() {
    const std::string kibibytes = proc_value("/proc/meminfo", "MemTotal");
    return fmt::format("{:.0f} GiB",
                       std::strtod(kibibytes.c_str(), nullptr) / (1024.0 * 1024.0));
}

}  // namespace

std::string cpu_in_words() {
    return fmt::format("{}, {} threads", cpu_model(),
                       std::thread::hardware_concurrency());
}

bench::Result make_result(bool emulated) {
    bench::Result result;
    result.created = utc_now();
    result.commit = commit();
    if (!gpu::is_emulated() && gpu::missing_device().empty()) {
        result.kind = "gpu";
        result.device = gpu::device_name();
        result.facts = gpu::device_facts();
    } else {
        const bool executor = emulated && gpu::is_emulated();
        result.kind = executor ? "executor" : "cpu";
        result.device = executor ? "CUDA on a CPU" : cpu_model();
    }
    result.facts["CPU"] = cpu_in_words();
    result.facts["host memory"] = host_memory();
    result.facts["compiler"] = MOE_COMPILER ", " MOE_BUILD_TYPE;
    return result;
}

}  // namespace moe
