#include "gpu/device_facts.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include "gpu/check.h"
#include "gpu/nvml.h"

namespace moe::gpu {
namespace {

cudaDeviceProp properties() {
    int device = 0;
    check(cudaGetDevice(&device), "device");
    cudaDeviceProp found;
    check(cudaGetDeviceProperties(&found, device), "device");
    return found;
}

/// 13000 is CUDA 13.0.
std::string version_in_words(int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

#ifdef __CUDACC__
std::string pci_bus_id() {
    int device = 0;
    check(cudaGetDevice(&device), "device");
    char text[32] = "";
    check(cudaDeviceGetPCIBusId(text, sizeof text, device), "device");
    return text;
}
#endif

}  // namespace

std::map<std::string, std::string> device_facts() {
    const cudaDeviceProp device = properties();
    int driver = 0, runtime = 0;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    std::map<std::string, std::string> facts = {
        {"compute capability", fmt::format("{}.{}", device.major, device.minor)},
        {"multiprocessors", std::to_string(device.multiProcessorCount)},
        {"memory", fmt::format("{:.1f} GiB", double(device.totalGlobalMem) / (1 << 30))},
        {"L2 cache", fmt::format("{:.0f} MiB", double(device.l2CacheSize) / (1 << 20))},
        {"CUDA driver", version_in_words(driver)},
        {"CUDA runtime", version_in_words(runtime)}};
#ifdef __CUDACC__
    facts.merge(nvml_facts(pci_bus_id()));
#endif
    return facts;
}

std::string device_state() {
#ifdef __CUDACC__
    return nvml_state(pci_bus_id());
#else
    return "";
#endif
}

std::int64_t l2_bytes() {
    return properties().l2CacheSize;
}

}  // namespace moe::gpu
