// memory.cpp: device memory is host memory that the executor knows about, so that a
// pointer of the wrong kind is found where it is used.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "block.h"
#include "capture.h"
#include "cuda_on_cpu/foreign_memory.h"
#include "cuda_on_cpu/runtime_api.h"
#include "error.h"
#include "guarded.h"
#include "memory.h"
#include "observe/events.h"
#include "stream.h"

namespace cuda_on_cpu {
namespace {

// AddressSanitizer watches what malloc() gives, and its report names the line.
#ifdef CUDA_ON_CPU_ASAN
constexpr bool kGuarded = false;
#else
constexpr bool kGuarded = true;
#endif

// By first address.
std::map<std::uintptr_t, Allocation> allocations;
std::shared_mutex allocations_mutex;

std::string address_of(const void* pointer) {
    char text[32];
    std::snprintf(text, sizeof text, "%p", pointer);
    return text;
}

std::size_t total_memory() {
    return std::size_t(sysconf(_SC_PHYS_PAGES)) * std::size_t(sysconf(_SC_PAGESIZE));
}

/// Fills fresh memory with what no kernel writes: NaN, and an index beyond everything.
/// (-1 would pass for the "none" of many index arrays.)
void poison(unsigned char* memory, std::size_t bytes) {
    constexpr unsigned char kWord[] = {0xFF, 0xFF, 0xFF, 0x7F};  // 0x7FFFFFFF
    for (std::size_t i = 0; i < bytes; ++i) memory[i] = kWord[i % 4];
}

void* allocate_aligned(std::size_t bytes, cudaMemoryType type) {
    if (bytes > total_memory()) return nullptr;
    if (kGuarded && type == cudaMemoryTypeDevice) return guarded_allocate(bytes);
    void* memory = nullptr;
    return posix_memalign(&memory, 256, bytes) == 0 ? memory : nullptr;
}

cudaError_t allocate(const char* function, void** pointer, std::size_t bytes,
                     cudaMemoryType type) {
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    void* memory = allocate_aligned(bytes, type);
    if (memory == nullptr)
        return set_error(cudaErrorMemoryAllocation, std::string(function) + ": " +
                                                        std::to_string(bytes) +
                                                        " bytes: out of memory");
    if (type == cudaMemoryTypeDevice) poison(static_cast<unsigned char*>(memory), bytes);
    observe::memory_allocated(memory, bytes,
                              type == cudaMemoryTypeDevice    ? observe::Memory::device
                              : type == cudaMemoryTypeManaged ? observe::Memory::managed
                                                              : observe::Memory::host);
    const std::unique_lock lock(allocations_mutex);
    allocations[reinterpret_cast<std::uintptr_t>(memory)] = {bytes, type};
    *pointer = memory;
    return cudaSuccess;
}

cudaError_t release(const char* function, void* pointer, bool host) {
    if (pointer == nullptr) return cudaSuccess;
    bool guarded = false;
    {
        const std::unique_lock lock(allocations_mutex);
        const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
        if (found == allocations.end() ||
            (found->second.type == cudaMemoryTypeHost) != host)
            return set_error(cudaErrorInvalidValue,
                             std::string(function) +
                                 ": pointer = " + address_of(pointer) +
                                 ": must come from the matching allocation, and be "
                                 "freed once");
        guarded = kGuarded && found->second.type == cudaMemoryTypeDevice;
        observe::memory_freed(pointer);
        allocations.erase(found);
    }
    if (!guarded) {
        std::free(pointer);
        return cudaSuccess;
    }
    const std::string damage = guarded_free(pointer);
    if (damage.empty()) return cudaSuccess;
    return set_error(cudaErrorIllegalAddress,
                     std::string(function) + ": since its last check, " + damage);
}

/// What calls ask for outside of the order of streams.
cudaError_t allocate_now(const char* function, void** pointer, std::size_t bytes,
                         cudaMemoryType type) {
    *pointer = nullptr;
    if (const cudaError_t error = refuse_unsafe(function)) return error;
    return allocate(function, pointer, bytes, type);
}

/// Frees what nothing on the device uses any more.
cudaError_t release_when_idle(const char* function, void* pointer, bool host) {
    if (pointer != nullptr)
        if (const cudaError_t error = refuse_unsafe(function)) return error;
    const cudaError_t earlier = pointer != nullptr ? demand_all() : cudaSuccess;
    const cudaError_t error = release(function, pointer, host);
    return error != cudaSuccess ? error : earlier;
}

// A graph has its memory for as long as it exists. For its kernels it is new where the
// graph allocates it, and what they find there after its end is poison.
cudaError_t allocate_in_graph(cudaStream_t stream, void* pointer, std::size_t bytes) {
    capture_memory(stream, {pointer, [](void* memory) {
                                release("a graph's memory", memory, false);
                            }});
    return submit("cudaMallocAsync", stream, [=](observe::Ticket) {
        observe::memory_freed(pointer);
        observe::memory_allocated(pointer, bytes, observe::Memory::device);
        poison(static_cast<unsigned char*>(pointer), bytes);
        return cudaSuccess;
    });
}
cudaError_t free_in_graph(cudaStream_t stream, void* pointer) {
    if (const cudaError_t error = check_stream("cudaFreeAsync", stream)) return error;
    if (!capture_free(stream, pointer))
        return set_error(cudaErrorInvalidValue,
                         "cudaFreeAsync: pointer = " + address_of(pointer) +
                             ": must come from the same capture, and be freed once");
    const std::size_t bytes = find_allocation(pointer).allocation.bytes;
    return submit("cudaFreeAsync", stream, [=](observe::Ticket) {
        poison(static_cast<unsigned char*>(pointer), bytes);
        return cudaSuccess;
    });
}

}  // namespace

Found find_allocation(const void* pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    const std::shared_lock lock(allocations_mutex);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return {};
    --after;
    // One past the end is still this allocation's: an empty slice may point there.
    if (address - after->first > after->second.bytes) return {};
    return {after->first, after->second};
}

cudaError_t check_range(const char* function, const char* side, const void* pointer,
                        std::size_t bytes, bool want_device, bool want_host) {
    const Found found = find_allocation(pointer);
    const bool device = on_device(found.allocation.type);
    const std::string what =
        std::string(function) + ": " + side + " = " + address_of(pointer);
    if (pointer == nullptr)
        return set_error(cudaErrorInvalidValue, what + ": must not be null");
    if (found.base == 0)
        if (const std::string place = describe_forbidden(pointer); !place.empty())
            return set_error(cudaErrorInvalidValue, what + ": is " + place);
    if (want_device && !device)
        return set_error(cudaErrorInvalidValue,
                         what + ": is host memory, must be device memory");
    if (want_host && found.allocation.type == cudaMemoryTypeDevice)
        return set_error(cudaErrorInvalidValue,
                         what + ": is device memory, must be host memory");
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(pointer) - found.base;
    if (found.base != 0 && bytes > found.allocation.bytes - offset)
        return set_error(cudaErrorInvalidValue,
                         what + ": " + std::to_string(bytes) + " bytes reach past its " +
                             "allocation, which has " +
                             std::to_string(found.allocation.bytes - offset) + " left");
    return cudaSuccess;
}

std::string describe_outside(const void* address, std::size_t bytes) {
    const Found found = find_allocation(address);
    const std::string what = "address " + address_of(address) + ": ";
    if (found.base == 0) {
        const std::string place = describe_forbidden(address);
        return what + "is " + (place.empty() ? "no device memory" : place);
    }
    if (!on_device(found.allocation.type)) return what + "is host memory";
    const std::size_t offset = reinterpret_cast<std::uintptr_t>(address) - found.base;
    if (bytes <= found.allocation.bytes - offset) return "";
    return what + std::to_string(bytes) + " bytes reach " +
           std::to_string(bytes - (found.allocation.bytes - offset)) +
           " past the end of a device allocation of " +
           std::to_string(found.allocation.bytes) + " bytes";
}

void adopt_device_memory(void* pointer, std::size_t bytes) {
    observe::memory_allocated(pointer, bytes, observe::Memory::managed);
    const std::unique_lock lock(allocations_mutex);
    allocations[reinterpret_cast<std::uintptr_t>(pointer)] = {bytes,
                                                              cudaMemoryTypeDevice};
}

void disown_device_memory(void* pointer) {
    observe::memory_freed(pointer);
    const std::unique_lock lock(allocations_mutex);
    allocations.erase(reinterpret_cast<std::uintptr_t>(pointer));
}

cudaError_t check_pointer_argument(int index, const void* pointer, const void*) {
    if (pointer == nullptr || find_allocation(pointer).base != 0) return cudaSuccess;
    const std::string place = describe_forbidden(pointer);
    return set_error(cudaErrorIllegalAddress,
                     "kernel argument " + std::to_string(index) + " = " +
                         address_of(pointer) + ": is " +
                         (place.empty() ? "host memory" : place) +
                         ", a kernel needs device memory");
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
    return allocate_now("cudaMalloc", pointer, bytes, cudaMemoryTypeDevice);
}
cudaError_t cudaFree(void* pointer) {
    return release_when_idle("cudaFree", pointer, false);
}
cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t stream) {
    *pointer = nullptr;
    if (const cudaError_t error = check_stream("cudaMallocAsync", stream)) return error;
    if (const cudaError_t error =
            allocate("cudaMallocAsync", pointer, bytes, cudaMemoryTypeDevice))
        return error;
    if (is_captured(stream) && bytes > 0)
        return allocate_in_graph(stream, *pointer, bytes);
    if (!holds_work()) return cudaSuccess;
    // What another stream writes before this one has got so far is lost.
    return submit("cudaMallocAsync", stream, [memory = *pointer, bytes](observe::Ticket) {
        poison(static_cast<unsigned char*>(memory), bytes);
        return cudaSuccess;
    });
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
    if (is_captured(stream) && pointer != nullptr) return free_in_graph(stream, pointer);
    return submit("cudaFreeAsync", stream, [=](observe::Ticket) {
        return release("cudaFreeAsync", pointer, false);
    });
}
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
    return allocate_now("cudaMallocHost", pointer, bytes, cudaMemoryTypeHost);
}
cudaError_t cudaFreeHost(void* pointer) {
    return release_when_idle("cudaFreeHost", pointer, true);
}
cudaError_t cudaMallocManaged(void** pointer, std::size_t bytes, unsigned) {
    return allocate_now("cudaMallocManaged", pointer, bytes, cudaMemoryTypeManaged);
}

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
    *free_bytes =
        std::size_t(sysconf(_SC_AVPHYS_PAGES)) * std::size_t(sysconf(_SC_PAGESIZE));
    *total_bytes = total_memory();
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                     const void* pointer) {
    const cudaMemoryType type = find_allocation(pointer).allocation.type;
    void* address = const_cast<void*>(pointer);
    attributes->type = type;
    attributes->device = on_device(type) ? 0 : -1;
    attributes->devicePointer = type == cudaMemoryTypeUnregistered ? nullptr : address;
    attributes->hostPointer = type == cudaMemoryTypeDevice ? nullptr : address;
    return cudaSuccess;
}
