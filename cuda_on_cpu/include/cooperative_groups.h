/// @file
/// Cooperative groups as far as kernels here use them: the block, and tiles of 1 to 32 of
/// its threads. Rules: CUDA C++ Programming Guide, "Cooperative Groups". Grids, clusters
/// and coalesced groups are not provided.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

/// All threads of the block.
class thread_block {
  public:
    void sync(CUDA_ON_CPU_SITE) const { __syncthreads(file, line); }

    unsigned thread_rank() const {
        return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    }
    unsigned num_threads() const { return blockDim.x * blockDim.y * blockDim.z; }
    unsigned size() const { return num_threads(); }
    dim3 group_index() const { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
    dim3 thread_index() const { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
    dim3 dim_threads() const { return {blockDim.x, blockDim.y, blockDim.z}; }
};

inline thread_block this_thread_block() {
    return {};
}

/// `Size` neighbouring threads of a block, all of one warp.
template <unsigned Size, typename Parent = thread_block>
class thread_block_tile {
    static_assert(Size >= 1 && Size <= 32 && (Size & (Size - 1)) == 0,
                  "a tile has 1, 2, 4, 8, 16 or 32 threads");

  public:
    void sync(CUDA_ON_CPU_SITE) const { __syncwarp(mask(), file, line); }

    unsigned thread_rank() const { return thread_block().thread_rank() % Size; }
    unsigned meta_group_rank() const { return thread_block().thread_rank() / Size; }
    unsigned meta_group_size() const {
        return (thread_block().num_threads() + Size - 1) / Size;
    }
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }

    template <typename T>
    T shfl(T value, int rank, CUDA_ON_CPU_SITE) const {
        return __shfl_sync(mask(), value, rank, Size, file, line);
    }
    template <typename T>
    T shfl_up(T value, unsigned delta, CUDA_ON_CPU_SITE) const {
        return __shfl_up_sync(mask(), value, delta, Size, file, line);
    }
    template <typename T>
    T shfl_down(T value, unsigned delta, CUDA_ON_CPU_SITE) const {
        return __shfl_down_sync(mask(), value, delta, Size, file, line);
    }
    template <typename T>
    T shfl_xor(T value, unsigned lane_mask, CUDA_ON_CPU_SITE) const {
        return __shfl_xor_sync(mask(), value, int(lane_mask), Size, file, line);
    }
    int any(int predicate, CUDA_ON_CPU_SITE) const {
        return __any_sync(mask(), predicate, file, line);
    }
    int all(int predicate, CUDA_ON_CPU_SITE) const {
        return __all_sync(mask(), predicate, file, line);
    }
    /// Bit r is set when the thread of rank r in the tile says so.
    unsigned ballot(int predicate, CUDA_ON_CPU_SITE) const {
        return __ballot_sync(mask(), predicate, file, line) >> first_lane();
    }

  private:
    static unsigned first_lane() {
        return thread_block().thread_rank() % 32 / Size * Size;
    }
    static unsigned mask() {
        return unsigned((std::uint64_t{1} << Size) - 1) << first_lane();
    }
};

/// The tile of `Size` threads to which the calling thread belongs.
template <unsigned Size>
thread_block_tile<Size> tiled_partition(const thread_block&) {
    return {};
}

}  // namespace cooperative_groups
