/// @file
/// What the executor tells the observer, one line at each place. In ordinary builds these
/// are empty functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_on_cpu/observe.h"
#include "cuda_on_cpu/runtime_types.h"

namespace cuda_on_cpu {
struct Launch;
}

namespace cuda_on_cpu::observe {

/// A place in a stream: the order of the device's work is settled when the host asks for
/// it, whenever it is done.
using Ticket = std::uint32_t;

#ifdef CUDA_ON_CPU_OBSERVE
class Lanes;
struct Lane;

/// While it lives, nobody notes what the running CUDA thread does: the executor and the
/// observer are at work. They use functions of the C++ library, and the copy of one that
/// the linker took may be that of a kernel's file, with its calls.
class Unseen {
  public:
    Unseen();
    ~Unseen();
    Unseen(const Unseen&) = delete;
    Unseen& operator=(const Unseen&) = delete;

  private:
    Lane* const lane_;
};

/// A block's part: who runs, and where its threads meet.
class Watch {
  public:
    Watch();
    ~Watch();
    void block_begins(Launch& launch, std::int64_t index, const std::byte* arena);
    void block_ends();
    /// From now on this thread of the block runs on the calling CPU thread.
    void runs(int thread);
    /// All threads that have not exited wait at a barrier of the block.
    void barrier_opens();
    /// The lanes of `mask` have met; __syncwarp orders their memory, a shuffle does not.
    void warp_meets(int warp, unsigned mask, bool orders_memory);
    /// The thread's last access is behind it; `live` are the lanes of its warp that
    /// remain.
    void exits(int thread, unsigned live);
    /// The executor itself goes on in this thread, to tell of a fault.
    void pauses();

  private:
    std::unique_ptr<Lanes> lanes_;
    bool is_on_ = false;  ///< the block runs, and its launch is observed
};

Ticket enqueued(cudaStream_t stream);
void launch_begins(const Launch& launch, Ticket ticket);
void launch_ends();

/// Who else writes to memory that kernels may touch: then nobody knows what is written.
enum class Memory {
    device,   ///< nobody
    managed,  ///< the host, or another process
    host      ///< the host, and it lies there: it is not counted as the device's
};
void memory_allocated(const void* base, std::size_t bytes, Memory kind);
void memory_freed(const void* base);
/// A copy, or a fill (no source), was made.
/// @param waits  the host goes on only when it is done
void copied(Ticket ticket, void* target, const void* source, std::size_t bytes,
            bool waits);

void stream_made(cudaStream_t stream, bool blocking);
void event_recorded(cudaEvent_t event, cudaStream_t stream);
void stream_waits(cudaStream_t stream, cudaEvent_t event);
void host_waits_for_stream(cudaStream_t stream);
void host_waits_for_event(cudaEvent_t event);
void host_waits_for_device();
/// cudaFree() waits for the device as well, but no program means to wait by it.
void free_waits_for_device();
#else
struct Unseen {
    Unseen() {}  // not trivial: no warning about a variable that is not used
};
class Watch {
  public:
    void block_begins(Launch&, std::int64_t, const std::byte*) {}
    void block_ends() {}
    void runs(int) {}
    void barrier_opens() {}
    void warp_meets(int, unsigned, bool) {}
    void exits(int, unsigned) {}
    void pauses() {}
};
inline Ticket enqueued(cudaStream_t) {
    return 0;
}
inline void launch_begins(const Launch&, Ticket) {}
inline void launch_ends() {}
enum class Memory { device, managed, host };
inline void memory_allocated(const void*, std::size_t, Memory) {}
inline void memory_freed(const void*) {}
inline void copied(Ticket, void*, const void*, std::size_t, bool) {}
inline void stream_made(cudaStream_t, bool) {}
inline void event_recorded(cudaEvent_t, cudaStream_t) {}
inline void stream_waits(cudaStream_t, cudaEvent_t) {}
inline void host_waits_for_stream(cudaStream_t) {}
inline void host_waits_for_event(cudaEvent_t) {}
inline void host_waits_for_device() {}
inline void free_waits_for_device() {}
#endif

}  // namespace cuda_on_cpu::observe
