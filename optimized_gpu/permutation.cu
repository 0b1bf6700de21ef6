// permutation.cu: rows of tokens copied into expert order, and summed back.

#include "optimized_gpu/permutation.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/token_slices.h"

namespace moe::optimized {
namespace {

/// Rows as vectors of up to 16 bytes: as wide as divides the width of a row, because each
/// row must begin at a multiple of the vector.
int vector_bytes(const Tensor& rows, const void* other) {
    const std::size_t row_bytes = rows.dim(1) * size_of(rows.dtype());
    const auto all = row_bytes | reinterpret_cast<std::uintptr_t>(rows.view().bytes) |
                     reinterpret_cast<std::uintptr_t>(other);
    return optimized::vector_bytes(all);
}

void check_dtype(const Tensor& rows) {
    if (rows.dtype() != DType::bf16 && rows.dtype() != DType::f32)
        reject("dtype", to_string(rows.dtype()),
               "optimized_gpu moves rows in bf16 or fp32; naive_gpu has all types");
    MOE_CHECK(rows.space() == MemorySpace::device);
    MOE_CHECK_EQ(rows.shape().size(), 2u);
}

void check_tokens(const Tensor& tokens, const RowMap& map) {
    check_dtype(tokens);
    MOE_CHECK_EQ(tokens.dim(0), map.num_tokens);
}

/// Who has counted rows on the host has no more of them than there are.
void check_rows(const Tensor& rows, const RowMap& map) {
    check_dtype(rows);
    MOE_CHECK(rows.dim(0) <= map.capacity);
}

void* bytes_of(const Tensor& tensor) {
    return tensor.defined() ? tensor.view().bytes : nullptr;
}

}  // namespace

//! [permute]
namespace {

/// One warp's slice of a token, to all its rows.
template <typename Vector>
__device__ void copy_token(Vector* rows, const Vector* tokens, const int* token_rows,
                           int token, int K, int width) {
    const Vector* from = tokens + std::int64_t(token) * width;
    Vector slice[kSteps] = {};
    for (int step = 0; step < kSteps; ++step) {
        const int column = first_column() + step * kLanes;
        if (column < width) slice[step] = from[column];
    }
    int own_row = -1;
    for (int k = 0; k < K; ++k) {
        if (k % kLanes == 0) own_row = load_rows_of_token(token_rows, token, K, k);
        const int row = __shfl_sync(kAllLanes, own_row, k % kLanes);
        if (row < 0) break;  // rows come first
        Vector* to = rows + std::int64_t(row) * width;
        for (int step = 0; step < kSteps; ++step) {
            const int column = first_column() + step * kLanes;
            if (column < width) to[column] = slice[step];
        }
    }
}

/// One warp's slice of an expert's padding rows.
template <typename Vector>
__device__ void clear_padding(Vector* rows, int first, int end, int width) {
    const Vector zero = {};
    for (int row = first; row < end; ++row)
        for (int step = 0; step < kSteps; ++step) {
            const int column = first_column() + step * kLanes;
            if (column < width) rows[std::int64_t(row) * width + column] = zero;
        }
}

/// A warp for each token, then one for each expert that may have padding.
/// TUTORIAL: going through the rows, each fetching its token, would read a token again
/// for each of its experts, long after the caches have forgotten it. Going through the
/// tokens reads each once, and needs no guess of how many rows there are.
template <typename Vector>
__global__ void __launch_bounds__(kThreads)
    permute_kernel(Vector* rows, const Vector* tokens, const int* token_rows,
                   const int* offsets, const int* tokens_per_expert, int num_tokens,
                   int K, int E, int token_blocks, int width) {
    const int block = int(blockIdx.x);
    if (block < token_blocks) {
        const int token = block * kWarps + warp_index();
        if (token < num_tokens) copy_token(rows, tokens, token_rows, token, K, width);
    } else {
        const int e = (block - token_blocks) * kWarps + warp_index();
        if (e < E)
            clear_padding(rows, offsets[e] + tokens_per_expert[e], offsets[e + 1], width);
    }
}

template <typename Vector>
void launch_permute(const Tensor& rows, const Tensor& tokens, const RowMap& map,
                    cudaStream_t stream) {
    const int width = int(tokens.dim(1) * size_of(tokens.dtype()) / sizeof(Vector));
    const int token_blocks = blocks_for(map.num_tokens, kWarps);
    const int expert_blocks = map.padding > 1 ? blocks_for(map.num_experts, kWarps) : 0;
    gpu::launch("permute_kernel", permute_kernel<Vector>,
                {dim3(token_blocks + expert_blocks, blocks_for(width, kSliceVectors)),
                 kThreads, 0, stream},
                static_cast<Vector*>(bytes_of(rows)),
                static_cast<const Vector*>(bytes_of(tokens)),
                gpu::device_data<int>(map.token_rows), gpu::device_data<int>(map.offsets),
                gpu::device_data<int>(map.tokens_per_expert), map.num_tokens, map.topk,
                map.num_experts, token_blocks, width);
}

}  // namespace

Tensor permute(const Tensor& tokens, const RowMap& map, cudaStream_t stream) {
    check_tokens(tokens, map);
    Tensor rows =
        Tensor::empty({map.capacity, tokens.dim(1)}, tokens.dtype(), MemorySpace::device);
    switch (vector_bytes(tokens, bytes_of(rows))) {  // bits are copied, of any type
        case 16: launch_permute<uint4>(rows, tokens, map, stream); break;
        case 4: launch_permute<unsigned>(rows, tokens, map, stream); break;
        default: launch_permute<unsigned short>(rows, tokens, map, stream);
    }
    return rows;
}

Tensor combine_backward(const Tensor& doutput, const RowMap& map, cudaStream_t stream) {
    return permute(doutput, map, stream);
}
//! [permute]

//! [combine]
namespace {

/// Where a map has tokens.
struct Regions {
    const int* counts;  // null: everywhere
    int tokens;

    explicit Regions(const RowMap& map)
        : counts(gpu::device_data<int>(map.region_counts)),
          tokens(map.tokens_per_region) {}
    __device__ bool have(int token) const {
        return counts == nullptr || token % tokens < counts[token / tokens];
    }
};

/// Some rows of a token, the same in all lanes.
template <int kMaxRows>
__device__ void load_group(int (&row)[kMaxRows], const int* token_rows, int token, int K,
                           int first) {
    const int own_row = load_rows_of_token(token_rows, token, K, first);
    for (int k = 0; k < kMaxRows; ++k) row[k] = __shfl_sync(kAllLanes, own_row, k);
}

/// A warp for a slice of each token.
/// @tparam kMaxRows  of a token, or, with kMore, that are summed at once: the next ones
///                   follow until the token has no more
template <typename T, typename Vector, int kMaxRows, bool kMore>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Vector* output, const Vector* rows, const Vector* addend,
                   const int* token_rows, Regions regions, int num_tokens, int K,
                   int width) {
    constexpr int kElements = sizeof(Vector) / sizeof(T);
    const int token = int(blockIdx.x) * kWarps + warp_index();
    if (token >= num_tokens || !regions.have(token)) return;
    int row[kMaxRows];
    if (!kMore) load_group(row, token_rows, token, K, 0);

    const std::int64_t start = std::int64_t(token) * width;
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
        const int column = first_column() + step * kLanes;
        const bool is_inside = column < width;
        Vector added = {};
        if (is_inside && addend != nullptr) added = addend[start + column];
        float sum[kElements] = {};
        for (int first = 0; first < (kMore ? K : 1); first += kMaxRows) {
            if (kMore) load_group(row, token_rows, token, K, first);
            if (kMore && row[0] < 0) break;
            Vector gathered[kMaxRows] = {};
            for (int k = 0; k < kMaxRows; ++k)
                if (is_inside && row[k] >= 0)
                    gathered[k] = rows[std::int64_t(row[k]) * width + column];
            // TUTORIAL: a load takes hundreds of cycles, and a warp goes on until it
            // needs the value. With all loads before the first addition the waits
            // overlap; they fit because kMaxRows is known here, so that the array is
            // registers. Left alone, the compiler saves registers and waits for one load
            // after another; past a question to the whole warp it moves nothing.
            if (!__any_sync(kAllLanes, is_inside)) return;
            for (int k = 0; k < kMaxRows; ++k)  // the zeros of absent rows change nothing
                for (int i = 0; i < kElements; ++i) sum[i] += element<T>(gathered[k], i);
        }
        Vector result;
        for (int i = 0; i < kElements; ++i)
            set_element<T>(result, i, sum[i] + element<T>(added, i));
        if (is_inside) output[start + column] = result;
    }
}

template <typename T, typename Vector, int kMaxRows, bool kMore = false>
void launch_combine(const TensorView& output, const Tensor& rows, const Tensor& addend,
                    const RowMap& map, cudaStream_t stream) {
    const int width = int(rows.dim(1) * sizeof(T) / sizeof(Vector));
    gpu::launch("combine_kernel", combine_kernel<T, Vector, kMaxRows, kMore>,
                {slice_blocks(map.num_tokens, width), kThreads, 0, stream},
                static_cast<Vector*>(output.bytes),
                static_cast<const Vector*>(bytes_of(rows)),
                static_cast<const Vector*>(bytes_of(addend)),
                gpu::device_data<int>(map.token_rows), Regions(map), map.num_tokens,
                map.topk, width);
}

/// As few registers as the token's rows need.
template <typename T, typename Vector>
void launch_combine(const TensorView& output, const Tensor& rows, const Tensor& addend,
                    const RowMap& map, cudaStream_t stream) {
    if (map.topk > kMaxTopk)  // of which a token has few, as a rule
        launch_combine<T, Vector, 8, true>(output, rows, addend, map, stream);
    else if (sizeof(Vector) < 16 || map.topk > 16)
        launch_combine<T, Vector, kMaxTopk>(output, rows, addend, map, stream);
    else if (map.topk > 8)
        launch_combine<T, uint4, 16>(output, rows, addend, map, stream);
    else if (map.topk > 4)
        launch_combine<T, uint4, 8>(output, rows, addend, map, stream);
    else
        launch_combine<T, uint4, 4>(output, rows, addend, map, stream);
}

}  // namespace

Tensor combine(const Tensor& rows, const RowMap& map, const Tensor& addend,
               cudaStream_t stream) {
    Tensor output =
        Tensor::empty({map.num_tokens, rows.dim(1)}, rows.dtype(), MemorySpace::device);
    combine_into(output, rows, map, addend, stream);
    return output;
}

void combine_into(const TensorView& output, const Tensor& rows, const RowMap& map,
                  const Tensor& addend, cudaStream_t stream) {
    check_rows(rows, map);
    MOE_CHECK_EQ(output.dim(0), map.num_tokens);
    MOE_CHECK_EQ(output.dim(1), rows.dim(1));
    if (addend.defined()) {
        check_tokens(addend, map);
        MOE_CHECK_EQ(addend.dim(1), rows.dim(1));
        MOE_CHECK(addend.dtype() == rows.dtype());
    }
    const auto others = reinterpret_cast<std::uintptr_t>(bytes_of(addend)) |
                        reinterpret_cast<std::uintptr_t>(output.bytes);
    const int bytes = vector_bytes(rows, reinterpret_cast<const void*>(others));
    using Bf16 = __nv_bfloat16;
    if (rows.dtype() == DType::f32 && bytes == 16)
        launch_combine<float, uint4>(output, rows, addend, map, stream);
    else if (rows.dtype() == DType::f32)
        launch_combine<float, unsigned>(output, rows, addend, map, stream);
    else if (bytes == 16)
        launch_combine<Bf16, uint4>(output, rows, addend, map, stream);
    else if (bytes == 4)
        launch_combine<Bf16, unsigned>(output, rows, addend, map, stream);
    else
        launch_combine<Bf16, unsigned short>(output, rows, addend, map, stream);
}

Tensor permute_backward(const Tensor& drows, const RowMap& map, cudaStream_t stream) {
    return combine(drows, map, Tensor(), stream);
}
//! [combine]

}  // namespace moe::optimized
