// nvml.cpp: NVML without its header, which lies apart from the toolkit: these functions
// and numbers have been the same since 2013. Source: NVIDIA's NVML API reference.

#include "gpu/nvml.h"

#include <fmt/format.h>

#include <optional>

#include "gpu/library.h"

namespace moe::gpu {
namespace {

using Handle = void*;
constexpr unsigned kSmClock = 1, kMemoryClock = 2, kGpuTemperature = 0;

/// Bits of nvmlDeviceGetCurrentClocksThrottleReasons; the first only means idle.
constexpr std::pair<unsigned long long, const char*> kReasons[] = {
    {0x2, "application clocks"}, {0x4, "power cap"},         {0x8, "hardware slowdown"},
    {0x10, "sync boost"},        {0x20, "software thermal"}, {0x40, "hardware thermal"},
    {0x80, "power brake"},       {0x100, "display clocks"}};

class Nvml {
  public:
    explicit Nvml(const std::string& pci_bus_id) : library_({"libnvidia-ml.so.1"}) {
        auto* init = library_.function<int()>("nvmlInit_v2");
        auto* find = library_.function<int(const char*, Handle*)>(
            "nvmlDeviceGetHandleByPciBusId_v2");
        if (init == nullptr || find == nullptr || init() != 0) return;
        if (find(pci_bus_id.c_str(), &device_) != 0) device_ = nullptr;
    }
    bool found() const { return device_ != nullptr; }

    /// A number that `name` writes through its last argument.
    template <typename Number = unsigned, typename... Arguments>
    std::optional<Number> ask(const char* name, Arguments... arguments) const {
        auto* function = library_.function<int(Handle, Arguments..., Number*)>(name);
        Number number = 0;
        if (function == nullptr || function(device_, arguments..., &number) != 0)
            return std::nullopt;
        return number;
    }

    std::optional<std::string> driver() const {
        auto* function =
            library_.function<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
        char text[96] = "";
        if (function == nullptr || function(text, sizeof text) != 0) return std::nullopt;
        return text;
    }

  private:
    Library library_;
    Handle device_ = nullptr;
};

std::string reasons_in_words(unsigned long long bits) {
    std::string words;
    for (const auto& [bit, name] : kReasons)
        if (bits & bit) words += (words.empty() ? "" : " + ") + std::string(name);
    return words.empty() ? "no throttling" : "throttled by " + words;
}

}  // namespace

std::map<std::string, std::string> nvml_facts(const std::string& pci_bus_id) {
    const Nvml nvml(pci_bus_id);
    if (!nvml.found()) return {};
    std::map<std::string, std::string> facts;
    const auto note = [&](const char* name, auto number, const char* form) {
        if (number) facts[name] = fmt::format(fmt::runtime(form), *number);
    };
    note("driver", nvml.driver(), "{}");
    note("SM clock at most", nvml.ask("nvmlDeviceGetMaxClockInfo", kSmClock), "{} MHz");
    note("memory clock at most", nvml.ask("nvmlDeviceGetMaxClockInfo", kMemoryClock),
         "{} MHz");
    if (const auto limit = nvml.ask("nvmlDeviceGetPowerManagementLimit"))
        facts["power limit"] = fmt::format("{} W", *limit / 1000);
    return facts;
}

std::string nvml_state(const std::string& pci_bus_id) {
    const Nvml nvml(pci_bus_id);
    if (!nvml.found()) return "";
    std::string words;
    const auto add = [&](const std::string& word) {
        words += (words.empty() ? "" : ", ") + word;
    };
    if (const auto clock = nvml.ask("nvmlDeviceGetClockInfo", kSmClock))
        add(fmt::format("SM {} MHz", *clock));
    if (const auto power = nvml.ask("nvmlDeviceGetPowerUsage"))
        add(fmt::format("{} W", *power / 1000));
    if (const auto celsius = nvml.ask("nvmlDeviceGetTemperature", kGpuTemperature))
        add(fmt::format("{} °C", *celsius));
    if (const auto bits =
            nvml.ask<unsigned long long>("nvmlDeviceGetCurrentClocksThrottleReasons"))
        add(reasons_in_words(*bits));
    return words;
}

}  // namespace moe::gpu
