// gating.cu: the products around the logits, on CUDA cores.

#include "optimized_gpu/gating.h"

#include <cstdint>
#include <type_traits>

#include "gpu/tensor.h"
#include "optimized_gpu/gating_product.h"

namespace moe::optimized {

using gating::Factor;

namespace {

/// Stores a chunk's sums; the first one's have the bias.
template <typename Sum>
struct StoreChunk {
    Sum* sums;        // (chunks, rows, columns)
    const Sum* bias;  // (columns) or null
    std::int64_t rows, columns;

    __device__ void operator()(std::int64_t row, std::int64_t column, Sum sum) const {
        if (bias != nullptr && blockIdx.y == 0) sum += bias[column];
        sums[(blockIdx.y * rows + row) * columns + column] = sum;
    }
};

/// Adds to what is there. @tparam T  of what is there, where it is rounded
template <typename Sum, typename T>
struct AddTo {
    T* data;
    const float* factors;  // of what is added; or null
    std::int64_t columns;

    __device__ void operator()(std::int64_t row, std::int64_t column, Sum sum) const {
        T& value = data[row * columns + column];
        if (factors != nullptr) sum *= Sum(factors[row * columns + column]);
        value = gpu::narrow<T>(static_cast<gpu::Accumulator<T>>(gpu::widen(value) + sum));
    }
};

/// Calls run(std::type_identity<T>()) for the type of a product's sums.
template <typename Run>
void with_sums(DType dtype, Run run) {
    if (dtype == DType::f32) return run(std::type_identity<float>());
    if (dtype == DType::f64) return run(std::type_identity<double>());
    reject("dtype", to_string(dtype),
           "the gate computes in fp32 or fp64; tokens may be in bf16 as well");
}

/// The same for that of tokens.
template <typename Run>
void with_tokens(DType dtype, Run run) {
    if (dtype == DType::bf16) return run(std::type_identity<__nv_bfloat16>());
    with_sums(dtype, run);
}

/// Rows of a tensor are lines; or its columns are, and rows the depth.
template <typename T>
Factor<T> rows_of(const Tensor& tensor) {
    return {gpu::device_data<T>(tensor), tensor.dim(0), tensor.dim(1), 1};
}
template <typename T>
Factor<T> columns_of(const Tensor& tensor) {
    return {gpu::device_data<T>(tensor), tensor.dim(1), 1, tensor.dim(1)};
}

}  // namespace

//! [gating_forward]
Tensor gating_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      cudaStream_t stream) {
    const std::int64_t T = x.dim(0), H = x.dim(1), E = weight.dim(0);
    MOE_CHECK_EQ(weight.dim(1), H);
    MOE_CHECK(!bias.defined() || bias.numel() == E);
    Tensor logits;
    with_sums(weight.dtype(), [&](auto sum_type) {
        with_tokens(x.dtype(), [&](auto token_type) {
            using Sum = typename decltype(sum_type)::type;
            using Token = typename decltype(token_type)::type;
            const Chunks chunks = make_chunks(H, gating::count_tiles(T, E));
            logits = sum_of_chunks<Sum>({T, E}, chunks, stream, [&](Sum* sums) {
                const StoreChunk<Sum> store = {sums, gpu::device_data<Sum>(bias), T, E};
                gating::launch_product<Sum>(rows_of<Token>(x), rows_of<Sum>(weight),
                                            chunks, store, stream);
            });
        });
    });
    return logits;
}
//! [gating_forward]

//! [gating_backward]
void gating_backward_input(Tensor& dhidden, const Tensor& dlogits, const Tensor& weight,
                           const Tensor& factors, cudaStream_t stream) {
    const std::int64_t E = weight.dim(0), H = weight.dim(1);
    MOE_CHECK_EQ(dlogits.dim(1), E);
    MOE_CHECK(!factors.defined() || factors.shape() == dhidden.shape());
    MOE_CHECK_EQ(dhidden.dim(0), dlogits.dim(0));
    MOE_CHECK_EQ(dhidden.dim(1), H);
    with_sums(dlogits.dtype(), [&](auto sum_type) {
        with_tokens(dhidden.dtype(), [&](auto token_type) {
            using Sum = typename decltype(sum_type)::type;
            using Token = typename decltype(token_type)::type;
            const auto add_product = [&](const auto& columns) {
                const AddTo<Sum, Token> add = {gpu::device_data<Token>(dhidden),
                                               gpu::device_data<float>(factors), H};
                gating::launch_product<Sum>(rows_of<Sum>(dlogits), columns,
                                            Chunks{E, E, 1}, add, stream);
            };
            if constexpr (std::is_same_v<Sum, float>)
                if (weight.dtype() == DType::bf16)
                    return add_product(columns_of<__nv_bfloat16>(weight));
            add_product(columns_of<Sum>(weight));
        });
    });
}

Tensor gating_backward_weight(const Tensor& dlogits, const Tensor& x,
                              cudaStream_t stream) {
    const std::int64_t T = x.dim(0), H = x.dim(1), E = dlogits.dim(1);
    MOE_CHECK_EQ(dlogits.dim(0), T);
    Tensor dweight;
    with_sums(dlogits.dtype(), [&](auto sum_type) {
        with_tokens(x.dtype(), [&](auto token_type) {
            using Sum = typename decltype(sum_type)::type;
            using Token = typename decltype(token_type)::type;
            const Chunks chunks = make_chunks(T, gating::count_tiles(E, H));
            dweight = sum_of_chunks<Sum>({E, H}, chunks, stream, [&](Sum* sums) {
                const StoreChunk<Sum> store = {sums, nullptr, E, H};
                gating::launch_product<Sum>(columns_of<Sum>(dlogits),
                                            columns_of<Token>(x), chunks, store, stream);
            });
        });
    });
    return dweight;
}

namespace {

/// Sums in fp64: memory is what this waits for.
struct ColumnSmem {
    double sums[kWarps][kLanes];
};

/// A block sums 32 columns of a chunk's rows, each warp every eighth row.
template <typename Sum>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(Sum* sums, const Sum* rows, Chunks chunks, std::int64_t columns) {
    auto& smem = gpu::shared_memory<ColumnSmem>();
    const std::int64_t column = std::int64_t(blockIdx.x) * kLanes + lane_index();
    const std::int64_t end = chunks.end();
    double sum = 0.0;
    if (column < columns)
        for (std::int64_t row = chunks.begin() + warp_index(); row < end; row += kWarps)
            sum += double(rows[row * columns + column]);
    smem.sums[warp_index()][lane_index()] = sum;
    __syncthreads();
    if (warp_index() != 0 || column >= columns) return;
    for (int warp = 1; warp < kWarps; ++warp) sum += smem.sums[warp][lane_index()];
    sums[blockIdx.y * columns + column] = Sum(sum);
}

}  // namespace

Tensor gating_backward_bias(const Tensor& dlogits, cudaStream_t stream) {
    const std::int64_t T = dlogits.dim(0), E = dlogits.dim(1);
    const unsigned blocks = unsigned((E + kLanes - 1) / kLanes);
    const Chunks chunks = make_chunks(T, blocks);
    Tensor dbias;
    with_sums(dlogits.dtype(), [&](auto sum_type) {
        using Sum = typename decltype(sum_type)::type;
        dbias = sum_of_chunks<Sum>({E}, chunks, stream, [&](Sum* sums) {
            gpu::launch("sum_rows_kernel", sum_rows_kernel<Sum>,
                        {dim3(blocks, unsigned(chunks.count)), dim3(kThreads),
                         sizeof(ColumnSmem), stream},
                        sums, gpu::device_data<Sum>(dlogits), chunks, E);
        });
    });
    return dbias;
}
//! [gating_backward]

namespace {

/// One thread per element.
template <typename Sum, typename T>
__global__ void jitter_kernel(Sum* jittered, const T* x, const float* factors,
                              std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) jittered[i] = Sum(gpu::widen(x[i])) * Sum(factors[i]);
}

template <typename To, typename From>
__global__ void cast_kernel(To* to, const From* from, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = static_cast<To>(from[i]);
}

/// One thread per element.
template <typename T>
__global__ void round_kernel(T* rounded, const T* values, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    rounded[i] = T(gpu::widen(gpu::narrow<__nv_bfloat16>(float(values[i]))));
}

}  // namespace

Tensor cast_logits(const Tensor& logits, DType dtype, cudaStream_t stream) {
    if (logits.dtype() == dtype) return logits;
    Tensor result;
    with_sums(dtype, [&](auto to_type) {
        with_sums(logits.dtype(), [&](auto from_type) {
            using To = typename decltype(to_type)::type;
            using From = typename decltype(from_type)::type;
            result = gpu::device_empty<To>(logits.shape());
            gpu::launch("cast_kernel", cast_kernel<To, From>,
                        gpu::one_thread_per(logits.numel(), stream),
                        gpu::device_data<To>(result), gpu::device_data<From>(logits),
                        logits.numel());
        });
    });
    return result;
}

void round_to_bf16(Tensor& rounded, const Tensor& values, cudaStream_t stream) {
    MOE_CHECK(rounded.shape() == values.shape());
    with_sums(values.dtype(), [&](auto type) {
        using T = typename decltype(type)::type;
        gpu::launch(
            "round_kernel", round_kernel<T>, gpu::one_thread_per(values.numel(), stream),
            gpu::device_data<T>(rounded), gpu::device_data<T>(values), values.numel());
    });
}

Tensor jitter_tokens(const Tensor& x, const Tensor& factors, DType dtype,
                     cudaStream_t stream) {
    MOE_CHECK(factors.shape() == x.shape());
    Tensor jittered;
    with_sums(dtype, [&](auto sum_type) {
        with_tokens(x.dtype(), [&](auto token_type) {
            using Sum = typename decltype(sum_type)::type;
            using Token = typename decltype(token_type)::type;
            jittered = gpu::device_empty<Sum>(x.shape());
            gpu::launch("jitter_kernel", jitter_kernel<Sum, Token>,
                        gpu::one_thread_per(x.numel(), stream),
                        gpu::device_data<Sum>(jittered), gpu::device_data<Token>(x),
                        gpu::device_data<float>(factors), x.numel());
        });
    });
    return jittered;
}

}  // namespace moe::optimized
