/// @file
/// Long sums shared out to blocks in chunks, and put together in one order.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::optimized {

/// What is summed over, in chunks; blockIdx.y has the number of a block's.
struct Chunks {
    std::int64_t depth, length;
    int count;

    __device__ std::int64_t begin() const { return blockIdx.y * length; }
    __device__ std::int64_t end() const {
        return begin() + length < depth ? begin() + length : depth;
    }
};

/// From shapes alone, not from how many multiprocessors there are: it decides in which
/// order is summed, and every GPU shall get the same bits.
/// @param blocks  for one chunk
inline Chunks make_chunks(std::int64_t depth, std::int64_t blocks) {
    constexpr std::int64_t kBusyBlocks = 512;  // 4 for each of 132 multiprocessors
    constexpr std::int64_t kShortest = 256;    // less is not worth a sum of its own
    const std::int64_t most = std::max<std::int64_t>(depth / kShortest, 1);
    const std::int64_t count = std::clamp<std::int64_t>(
        kBusyBlocks / std::max<std::int64_t>(blocks, 1), 1, most);
    return {depth, (depth + count - 1) / count, int(count)};
}

/// One thread per element: the chunks' sums in their order.
template <typename Sum>
__global__ void sum_chunks_kernel(Sum* total, const Sum* sums, int chunks,
                                  std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    Sum sum = sums[i];
    for (int chunk = 1; chunk < chunks; ++chunk) sum += sums[chunk * count + i];
    total[i] = sum;
}

/// Memory for the next work of a stream. TUTORIAL: cudaFree() waits for the device, while
/// cudaFreeAsync() takes its turn in the stream, behind the kernels that still read.
template <typename T>
class Scratch {
  public:
    Scratch(std::int64_t count, cudaStream_t stream)
        : bytes_(count * std::int64_t(sizeof(T))), stream_(stream) {
        gpu::check(cudaMallocAsync(&data_, std::size_t(bytes_), stream),
                   "cudaMallocAsync");
        gpu::count_bytes(bytes_);
    }
    ~Scratch() {
        gpu::count_bytes(-bytes_);
        cudaFreeAsync(data_, stream_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* data() const { return data_; }

  private:
    T* data_ = nullptr;
    std::int64_t bytes_;
    cudaStream_t stream_;
};

/// A result that chunks make: make() is called with memory for (chunks, shape).
template <typename Sum, typename Make>
Tensor sum_of_chunks(Shape shape, const Chunks& chunks, cudaStream_t stream, Make make) {
    Tensor total = gpu::device_empty<Sum>(std::move(shape));
    Sum* const result = gpu::device_data<Sum>(total);
    if (chunks.count == 1 || total.numel() == 0) {
        make(result);
        return total;
    }
    const Scratch<Sum> sums(chunks.count * total.numel(), stream);
    make(sums.data());
    gpu::launch("sum_chunks_kernel", sum_chunks_kernel<Sum>,
                gpu::one_thread_per(total.numel(), stream), result, sums.data(),
                chunks.count, total.numel());
    return total;
}

}  // namespace moe::optimized
