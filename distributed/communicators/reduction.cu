// reduction.cu: sums over ranks, on the host and on the device.

#include "distributed/communicators/reduction.h"

#include "distributed/peer_memory/peer_memory.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::distributed {
namespace {

/// What a sum over T is kept in.
template <typename T>
struct SumOf {
    using type = T;
};
template <>
struct SumOf<BFloat16> {
    using type = float;
};
template <>
struct SumOf<__nv_bfloat16> {
    using type = float;
};

template <typename T>
void sum_on_host(const TensorView& target, const std::vector<TensorView>& sources) {
    using Sum = typename SumOf<T>::type;
    constexpr std::int64_t kPiece = 1024;  // of which the sums stay in the cache
    Sum total[kPiece];
    for (std::int64_t first = 0; first < target.numel(); first += kPiece) {
        const std::int64_t count = std::min(kPiece, target.numel() - first);
        const auto terms_of = [&](std::size_t r) { return sources[r].data<T>() + first; };
        const T* terms = terms_of(0);
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) total[i] = static_cast<Sum>(terms[i]);
        for (std::size_t r = 1; r < sources.size(); ++r) {
            terms = terms_of(r);
#pragma omp simd
            for (std::int64_t i = 0; i < count; ++i)
                total[i] += static_cast<Sum>(terms[i]);
        }
        T* out = target.data<T>() + first;
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(total[i]);
    }
}

/// One source per rank; a kernel takes them by value.
template <typename T>
struct SourcePointers {
    int size;
    const T* of[kMaxPeers];
};

/// One thread per element.
template <typename T>
__global__ void sum_kernel(T* target, SourcePointers<T> sources, std::int64_t count) {
    using Sum = typename SumOf<T>::type;
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    Sum total = static_cast<Sum>(sources.of[0][i]);
    for (int r = 1; r < sources.size; ++r) total += static_cast<Sum>(sources.of[r][i]);
    target[i] = static_cast<T>(total);
}

template <typename T>
void sum_on_device(const TensorView& target, const std::vector<TensorView>& sources) {
    MOE_CHECK(sources.size() <= std::size_t(kMaxPeers));
    SourcePointers<T> pointers{int(sources.size()), {}};
    for (std::size_t r = 0; r < sources.size(); ++r)
        pointers.of[r] = static_cast<const T*>(sources[r].bytes);
    gpu::launch("sum_kernel", sum_kernel<T>, gpu::one_thread_per(target.numel()),
                static_cast<T*>(target.bytes), pointers, target.numel());
    gpu::synchronize();
}

}  // namespace

void sum(const TensorView& target, const std::vector<TensorView>& sources) {
    MOE_CHECK(!sources.empty());
    for (const TensorView& source : sources) {
        MOE_CHECK(source.dtype == target.dtype && source.space == target.space);
        MOE_CHECK_EQ(source.numel(), target.numel());
    }
    const bool host = target.space == MemorySpace::host;
    switch (target.dtype) {
        case DType::f64:
            return (host ? sum_on_host<double> : sum_on_device<double>)(target, sources);
        case DType::f32:
            return (host ? sum_on_host<float> : sum_on_device<float>)(target, sources);
        case DType::bf16:
            return (host ? sum_on_host<BFloat16> : sum_on_device<__nv_bfloat16>)(target,
                                                                                 sources);
        case DType::i64:
            return (host ? sum_on_host<std::int64_t>
                         : sum_on_device<std::int64_t>)(target, sources);
        case DType::i32:
            return (host ? sum_on_host<std::int32_t>
                         : sum_on_device<std::int32_t>)(target, sources);
        default: MOE_CHECK(target.dtype != DType::u8);
    }
}

}  // namespace moe::distributed
