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

Ticket enqueued(cudaStream_t stream) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    return all.options.races ? all.races.order.enqueue(stream) : 0;
}

void launch_begins(const Launch& launch, Ticket ticket) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    running_launch = {};
    if (!all.is_on) return;
    running_launch.kernel = &kernel_named(all, launch.name);
    running_launch.operation = ticket;
    running_launch.threads = launch.block.x * launch.block.y * launch.block.z;
    running_launch.smem = launch.smem;
    if (all.options.races)
        all.races.set_name(ticket, {launch.name, launch.grid, launch.block});
}

void launch_ends() {
    KernelProfile* const kernel = running_launch.kernel;
    if (kernel == nullptr) return;
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    Counters& counters = running_launch.counters;
    std::tie(counters.sectors_read, counters.sectors_written) = all.memory.take_touched();
    tell_unwritten(all.races.unwritten);
    ++kernel->launches;
    kernel->total += counters;
    all.launches.push_back(
        {kernel->name, counters, running_launch.threads, running_launch.smem});
    running_launch.kernel = nullptr;
}

// ------------------------------------------------------------------------------- memory
void memory_allocated(const void* base, std::size_t bytes, Memory kind) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    Allocation& fresh = all.memory.add(number(base), bytes, kind != Memory::host);
    if (all.options.races) fresh.start_shadow(kind != Memory::device);
}

void memory_freed(const void* base) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    if (const Allocation* allocation = all.memory.find(number(base))) {
        all.spots.forget(allocation);
        std::erase_if(all.races.objects, [allocation](const auto& object) {
            return allocation->contains(object.first);
        });
    }
    all.memory.remove(number(base));
}

void copied(Ticket ticket, void* target, const void* source, std::size_t bytes,
            bool waits) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    all.host_waits += waits && all.is_on;
    if (!all.options.races) return;
    const char* const name = source == nullptr ? "cudaMemset" : "cudaMemcpy";
    all.races.set_name(ticket, {name, 1, 1});
    RaceFinder finder(all.races);
    finder.begin_copy(ticket);
    const std::uint32_t spot = all.spots.of(Site{name, 0});
    Allocation* const from = all.memory.find(number(source));
    Allocation* const to = all.memory.find(number(target));
    if (from != nullptr)
        finder.copy_access({&from->shadow(), from->base, from},
                           number(source) - from->base, bytes, false, spot, waits);
    if (to != nullptr) {
        const std::size_t offset = number(target) - to->base;
        finder.copy_access({&to->shadow(), to->base, to}, offset, bytes, true, spot,
                           waits);
        if (from != nullptr)
            to->shadow().copy_written(offset, from->shadow(), number(source) - from->base,
                                      bytes);
        else
            to->shadow().set_written(offset, bytes);
    }
    if (waits) all.races.order.host_waits_for_operation(ticket);
}

// -------------------------------------------------------------------- streams and events
namespace {

/// Runs `note` on the order of the device's work, where it matters.
template <typename Note>
void in_order(Note note) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    note(all.races.order);
}
template <typename Note>
void host_waits(Note note) {
    in_order([&](StreamOrder& order) {
        profile().host_waits += profile().is_on;
        note(order);
    });
}

}  // namespace

void stream_made(cudaStream_t stream, bool blocking) {
    in_order([=](StreamOrder& order) { order.stream_made(stream, blocking); });
}
void event_recorded(cudaEvent_t event, cudaStream_t stream) {
    in_order([=](StreamOrder& order) { order.event_recorded(event, stream); });
}
void stream_waits(cudaStream_t stream, cudaEvent_t event) {
    in_order([=](StreamOrder& order) { order.stream_waits(stream, event); });
}
void host_waits_for_stream(cudaStream_t stream) {
    host_waits([=](StreamOrder& order) { order.host_waits_for_stream(stream); });
}
void host_waits_for_event(cudaEvent_t event) {
    host_waits([=](StreamOrder& order) { order.host_waits_for_event(event); });
}
void host_waits_for_device() {
    host_waits([](StreamOrder& order) { order.host_waits_for_device(); });
}
void free_waits_for_device() {
    in_order([](StreamOrder& order) { order.host_waits_for_device(); });
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
