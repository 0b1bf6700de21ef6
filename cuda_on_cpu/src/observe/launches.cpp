// launches.cpp: what the runtime's calls tell the observer.

#include <algorithm>

#include "observe/events.h"
#include "observe/lanes.h"
#include "observe/profile.h"

namespace cuda_on_cpu::observe {

namespace {

std::uint64_t number(const void* pointer) {
    return reinterpret_cast<std::uint64_t>(pointer);
}

/// By a launch's name, which is one for all types that a template was compiled for.
KernelProfile& kernel_named(Profile& all, const std::string& name) {
    const auto found = std::find_if(all.kernels.begin(), all.kernels.end(),
                                    [&](const auto& each) { return each->name == name; });
    if (found != all.kernels.end()) return **found;
    all.kernels.push_back(std::make_unique<KernelProfile>());
    all.kernels.back()->name = name;
    return *all.kernels.back();
}

}  // namespace

void launch_begins(const Launch& launch) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    running_launch = {};
    if (!all.is_on) return;
    running_launch.kernel = &kernel_named(all, launch.name);
}

void launch_ends() {
    KernelProfile* const kernel = running_launch.kernel;
    if (kernel == nullptr) return;
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    Counters& counters = running_launch.counters;
    std::tie(counters.sectors_read, counters.sectors_written) = all.memory.take_touched();
    ++kernel->launches;
    kernel->total += counters;
    all.launches.push_back({kernel->name, counters});
    running_launch.kernel = nullptr;
}

void memory_allocated(const void* base, std::size_t bytes) {
    const std::lock_guard lock(profile().mutex);
    profile().memory.add(number(base), bytes);
}

void memory_freed(const void* base) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    if (const Allocation* allocation = all.memory.find(number(base)))
        all.spots.forget(allocation);
    all.memory.remove(number(base));
}

void host_waits() {
    const std::lock_guard lock(profile().mutex);
    profile().host_waits += profile().is_on;
}

// ---------------------------------------------------------- what instructions tell of
void async_bytes(std::uint64_t bytes, Site site) {
    if (running_launch.kernel == nullptr) return;
    const std::lock_guard lock(profile().mutex);
    running_launch.counters.async_bytes += bytes;
    running_launch.kernel->at(profile().spots.of(site)).async_bytes += bytes;
}

void mma_flops(std::uint64_t flops, Site site) {
    if (running_launch.kernel == nullptr) return;
    const std::lock_guard lock(profile().mutex);
    running_launch.counters.mma_flops += flops;
    running_launch.kernel->at(profile().spots.of(site)).mma_flops += flops;
}

}  // namespace cuda_on_cpu::observe
