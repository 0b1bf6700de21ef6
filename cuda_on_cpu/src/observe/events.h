/// @file
/// What the executor tells the observer, one line at each place. In ordinary builds these
/// are empty functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_on_cpu/observe.h"

namespace cuda_on_cpu {
struct Launch;
}

namespace cuda_on_cpu::observe {

#ifdef CUDA_ON_CPU_OBSERVE
class Lanes;

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
};

void launch_begins(const Launch& launch);
void launch_ends();

void memory_allocated(const void* base, std::size_t bytes);
void memory_freed(const void* base);
void host_waits();
#else
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
inline void launch_begins(const Launch&) {}
inline void launch_ends() {}
inline void memory_allocated(const void*, std::size_t) {}
inline void memory_freed(const void*) {}
inline void host_waits() {}
#endif

}  // namespace cuda_on_cpu::observe
