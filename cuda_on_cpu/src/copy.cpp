// copy.cpp: copies and fills, and when they are done.

#include <cstring>
#include <vector>

#include "capture.h"
#include "error.h"
#include "memory.h"
#include "observe/events.h"
#include "stream.h"

namespace cuda_on_cpu {
namespace {

cudaError_t check_copy(const char* function, const void* target, const void* source,
                       std::size_t target_bytes, std::size_t source_bytes,
                       cudaMemcpyKind kind) {
    if (unsigned(kind) > cudaMemcpyDefault)
        return set_error(cudaErrorInvalidMemcpyDirection,
                         std::string(function) + ": kind = " + std::to_string(kind) +
                             ": not a cudaMemcpyKind");
    const bool any = kind == cudaMemcpyDefault;
    const bool to_device =
        kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device =
        kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (const cudaError_t error = check_range(function, "dst", target, target_bytes,
                                              !any && to_device, !any && !to_device))
        return error;
    return check_range(function, "src", source, source_bytes, !any && from_device,
                       !any && !from_device);
}

/// Rows of bytes on their way; a plain copy has one.
struct Copy {
    const char* function;
    void* target;
    std::size_t target_pitch;
    const void* source;
    std::size_t source_pitch, width, height;
    cudaMemcpyKind kind;

    std::size_t target_bytes() const { return (height - 1) * target_pitch + width; }
    std::size_t source_bytes() const { return (height - 1) * source_pitch + width; }
    cudaError_t check() const {
        return check_copy(function, target, source, target_bytes(), source_bytes(), kind);
    }
    /// Checked again where it was held back: memory may have been freed since.
    cudaError_t run(observe::Ticket place, bool waits) const {
        if (const cudaError_t error = check()) return error;
        for (std::size_t row = 0; row < height; ++row) {
            auto* to = static_cast<char*>(target) + row * target_pitch;
            const auto* from = static_cast<const char*>(source) + row * source_pitch;
            std::memmove(to, from, width);
            observe::copied(place, to, from, width, waits && row + 1 == height);
        }
        return cudaSuccess;
    }
};

/// Host memory of a copy that is done later, as it is now.
struct Staged {
    std::vector<char> bytes;
    Copy copy;

    explicit Staged(const Copy& original)
        : bytes(static_cast<const char*>(original.source),
                static_cast<const char*>(original.source) + original.source_bytes()),
          copy(original) {
        copy.source = bytes.data();
    }
};

// TUTORIAL: whether a copy is done when the call returns depends on the memory. From
// pageable memory the driver copies aside what is to be sent, and returns; up to 64 KiB
// it does not even wait for the stream. Within the device nobody waits. Only pinned
// memory makes cudaMemcpyAsync to the host asynchronous. Source: CUDA Runtime API, API
// synchronization behavior; CUDA C++ Programming Guide, Concurrent Execution between Host
// and Device.
constexpr std::size_t kStagedAtOnce = 64 * 1024;

cudaError_t start_copy(const Copy& copy, cudaStream_t stream, bool asynchronous) {
    if (copy.width == 0 || copy.height == 0) return cudaSuccess;
    if (const cudaError_t error = copy.check()) return error;
    if (!asynchronous) {
        if (const cudaError_t error = check_stream(copy.function, stream)) return error;
        if (const cudaError_t error = refuse_unsafe(copy.function)) return error;
    }
    const cudaMemoryType from = find_allocation(copy.source).allocation.type,
                         to = find_allocation(copy.target).allocation.type;
    const bool inside = on_device(from) && on_device(to);
    const auto run = [copy, waits = !asynchronous && !inside](observe::Ticket place) {
        return copy.run(place, waits);
    };
    if (!holds_work() || inside || is_captured(stream))
        return submit(copy.function, stream, run);
    const bool pinned = (on_device(to) ? from : to) == cudaMemoryTypeHost;
    if (pinned && asynchronous && (on_device(from) || on_device(to)))
        return submit(copy.function, stream, run);
    if (pinned || !on_device(to)) return submit_and_wait(copy.function, stream, run);
    if (!asynchronous && copy.source_bytes() > kStagedAtOnce)
        if (const cudaError_t error = demand_stream(stream)) return error;
    return submit(copy.function, stream,
                  [staged = std::make_shared<Staged>(copy)](observe::Ticket place) {
                      return staged->copy.run(place, false);
                  });
}

cudaError_t start_set(const char* function, void* pointer, int value, std::size_t bytes,
                      cudaStream_t stream, bool asynchronous) {
    if (bytes == 0) return cudaSuccess;
    const auto check = [=] {
        return check_range(function, "devPtr", pointer, bytes, true, false);
    };
    const auto run = [=](observe::Ticket place) {
        if (const cudaError_t error = check()) return error;
        std::memset(pointer, value, bytes);
        observe::copied(place, pointer, nullptr, bytes, false);
        return cudaSuccess;
    };
    if (!holds_work()) return submit(function, stream, run);
    if (const cudaError_t error = check()) return error;
    const bool managed =
        find_allocation(pointer).allocation.type == cudaMemoryTypeManaged;
    return managed && !asynchronous ? submit_and_wait(function, stream, run)
                                    : submit(function, stream, run);
}

}  // namespace
}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes,
                       cudaMemcpyKind kind) {
    return start_copy({"cudaMemcpy", target, bytes, source, bytes, bytes, 1, kind},
                      nullptr, false);
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
    return start_copy({"cudaMemcpyAsync", target, bytes, source, bytes, bytes, 1, kind},
                      stream, true);
}

static cudaError_t copy_2d(const Copy& copy, cudaStream_t stream, bool asynchronous) {
    if (copy.height > 0 &&
        (copy.width > copy.target_pitch || copy.width > copy.source_pitch))
        return set_error(cudaErrorInvalidValue,
                         std::string(copy.function) +
                             ": width = " + std::to_string(copy.width) +
                             ": must be at most both pitches");
    return start_copy(copy, stream, asynchronous);
}
cudaError_t cudaMemcpy2D(void* target, std::size_t target_pitch, const void* source,
                         std::size_t source_pitch, std::size_t width, std::size_t height,
                         cudaMemcpyKind kind) {
    return copy_2d(
        {"cudaMemcpy2D", target, target_pitch, source, source_pitch, width, height, kind},
        nullptr, false);
}
cudaError_t cudaMemcpy2DAsync(void* target, std::size_t target_pitch, const void* source,
                              std::size_t source_pitch, std::size_t width,
                              std::size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    return copy_2d({"cudaMemcpy2DAsync", target, target_pitch, source, source_pitch,
                    width, height, kind},
                   stream, true);
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes) {
    return start_set("cudaMemset", pointer, value, bytes, nullptr, false);
}
cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes,
                            cudaStream_t stream) {
    return start_set("cudaMemsetAsync", pointer, value, bytes, stream, true);
}
