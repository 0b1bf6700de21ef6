// activation_backward.cu: FC2's input gradient with the activation's backward in its
// epilogue, on the first rung.

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/epilogue.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kWarpsAcross = kLines / kWarpColumns;

/// Tiles of the operands and, once those are multiplied, of what the epilogue reads and
/// writes.
struct BackwardSmem {
    struct Results {
        alignas(128) bf16 gate[kLines * kLines];  ///< of h, then of dh; not gated: all
        alignas(128) bf16 up[kLines * kLines];
        alignas(128) bf16 a[kLines * kLines];
    };
    union {
        MmaSyncSmem operands;
        Results results;
    };
    float row_sums[kWarpsAcross][kLines];  ///< of dp, each warp's columns
};

template <typename H>
struct BackwardProblem {
    bf16 *dh, *a;
    float* dp;  ///< (column tiles, rows)
    const bf16 *dy, *weight;
    const H* h;
    const float* row_probs;
    const int *row_ids, *offsets;
    int groups, depth, ffn;
    std::int64_t num_rows;
    ExpertActivation activation;

    __device__ int width() const { return activation.gated ? 2 * ffn : ffn; }
};

/// A block's part of h, dh and a: it starts at this row of all, this column of a.
struct BlockPart {
    std::int64_t row;
    int column;
    int rows, columns;  ///< that are there; more than kLines: all of the tile's
};

/// Brings a tile of h to where its gradients will lie. All threads; ends with a barrier.
template <bool kGated, int Vector>
__device__ void load_h(BackwardSmem::Results& tiles, const BackwardProblem<bf16>& p,
                       const BlockPart& part) {
    const int width = p.width();
    const Operand h = {p.h + part.row * width, nullptr, part.rows, width};
    for (int row = 0; row < kLines; row += kDepth) {
        load_tile<Along::lines, Vector>(tiles.gate + row * kLines, h, part.column, row);
        if constexpr (kGated)
            load_tile<Along::lines, Vector>(tiles.up + row * kLines, h,
                                            p.ffn + part.column, row);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
}
template <bool kGated, int Vector>
__device__ void load_h(BackwardSmem::Results&, const BackwardProblem<float>&,
                       const BlockPart&) {}

/// Two neighbours of h: from shared memory, or, in fp32, from where they are, four lanes
/// a sector.
/// @param half  0, or F: the second half of a row
__device__ inline float2 pair_of_h(const bf16* staged, const BackwardProblem<bf16>&,
                                   const BlockPart&, int, int, int) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(staged));
}
__device__ inline float2 pair_of_h(const bf16*, const BackwardProblem<float>& p,
                                   const BlockPart& part, int row, int column, int half) {
    if (row >= part.rows || column >= part.columns) return {};
    const float* const h =
        p.h + (part.row + row) * p.width() + half + part.column + column;
    if (p.ffn % 2 == 0) return *reinterpret_cast<const float2*>(h);
    return {h[0], column + 1 < part.columns ? h[1] : 0.0f};
}

/// One pair of the thread's sums: dh and a of it go to shared memory.
/// @return its part of dp
template <bool kGated, typename H>
__device__ float backward_pair(BackwardSmem::Results& tiles, const BackwardProblem<H>& p,
                               const BlockPart& part, int row, int column, float2 da,
                               float prob) {
    const int at = chunk_at<Along::lines>(row, column / kChunk) + column % kChunk;
    const auto set = [&](bf16* tile, float x, float y) {
        *reinterpret_cast<__nv_bfloat162*>(tile + at) = __floats2bfloat162_rn(x, y);
    };
    const float2 gate = pair_of_h(tiles.gate + at, p, part, row, column, 0);
    ActivationGradient x, y;
    if constexpr (kGated) {
        const float2 up = pair_of_h(tiles.up + at, p, part, row, column, p.ffn);
        x = p.activation.backward(gate.x, up.x, prob * da.x);
        y = p.activation.backward(gate.y, up.y, prob * da.y);
        set(tiles.up, x.dup, y.dup);
    } else {
        x = p.activation.backward(gate.x, prob * da.x);
        y = p.activation.backward(gate.y, prob * da.y);
    }
    set(tiles.gate, x.dgate, y.dgate);
    set(tiles.a, prob * x.value, prob * y.value);
    // Beyond the last column is anything, of which 0 times need not be 0.
    return (column < part.columns ? x.value * da.x : 0.0f) +
           (column + 1 < part.columns ? y.value * da.y : 0.0f);
}

/// All of the thread's sums, da'; what a warp's columns add to dp as well.
template <bool kGated, typename H>
__device__ void backward_tile(const Sums& da, BackwardSmem& s,
                              const BackwardProblem<H>& p, const BlockPart& part) {
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp_row() + 16 * i + lane / 4 + 8 * half;
            const bool has_prob = p.row_probs != nullptr && row < part.rows;
            const float prob = has_prob ? p.row_probs[part.row + row] : 1.0f;
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < kColumnBlocks; ++j)
                sum += backward_pair<kGated>(
                    s.results, p, part, row, warp_column() + 8 * j + lane % 4 * 2,
                    {da[i][j][2 * half], da[i][j][2 * half + 1]}, prob);
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            if (lane % 4 == 0) s.row_sums[warp_column() / kWarpColumns][row] = sum;
        }
}

/// Writes dh, a and the block's part of dp.
template <bool kGated, typename H>
__device__ void store_results(const BackwardSmem& s, const BackwardProblem<H>& p,
                              const BlockPart& part) {
    const int width = p.width();
    bf16* const dh = p.dh + part.row * width + part.column;
    store_staged(s.results.gate, {dh, width, part.rows, part.columns});
    if constexpr (kGated)
        store_staged(s.results.up, {dh + p.ffn, width, part.rows, part.columns});
    store_staged(s.results.a,
                 {p.a + part.row * p.ffn + part.column, p.ffn, part.rows, part.columns});
    const int row = int(threadIdx.x);
    if (row >= kLines || row >= part.rows) return;
    float sum = 0.0f;
    for (int i = 0; i < kWarpsAcross; ++i) sum += s.row_sums[i][row];
    p.dp[blockIdx.x * p.num_rows + part.row + row] = sum;
}

// TUTORIAL: da is read once, by the thread that made it, so it need never be written: in
// bf16 it would cost two bytes each way per element, and its rounding.
/// One block per tile of da.
template <bool kGated, int Vector, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    activation_backward_kernel(const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<BackwardSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const std::int64_t first = tile.first_row;
    const int row = tile.tile * kLines, column = int(blockIdx.x) * kLines;
    const Operand dy = rows_of_group(p.dy, p.row_ids, first, tile.rows, p.depth);
    const Operand weight = {p.weight + std::int64_t(tile.group) * p.depth * p.ffn,
                            nullptr, p.depth, p.ffn};
    Sums da;
    multiply<Along::depth, Along::lines, Vector>(da, s.operands, dy, row, weight, column,
                                                 p.depth);
    const BlockPart part = {first + row, column, tile.rows - row, p.ffn - column};
    load_h<kGated, Vector>(s.results, p, part);
    backward_tile<kGated>(da, s, p, part);
    __syncthreads();
    store_results<kGated>(s, p, part);
}

/// One thread per row: the parts of its dp, in the order of the tiles.
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(float* sums, const float* parts, int num_parts, const int* offsets,
                     int groups, std::int64_t num_rows) {
    const std::int64_t row = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (row < offsets[0] || row >= offsets[groups]) return;
    float sum = 0.0f;
    for (int i = 0; i < num_parts; ++i) sum += parts[i * num_rows + row];
    sums[row] = sum;
}

template <typename H>
ActivationGradients run(BackwardProblem<H> problem, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    const std::int64_t rows = problem.num_rows, ffn = problem.ffn;
    const unsigned tiles = tiles_of(ffn);
    ActivationGradients made = {gpu::device_empty<bf16>({rows, gated ? 2 * ffn : ffn}),
                                gpu::device_empty<bf16>({rows, ffn}),
                                gpu::device_empty<float>({rows}),
                                {}};
    if (tiles > 1) made.dp_parts = gpu::device_empty<float>({tiles, rows});
    problem.dh = gpu::device_data<bf16>(made.dh);
    problem.a = gpu::device_data<bf16>(made.a);
    problem.dp = gpu::device_data<float>(tiles > 1 ? made.dp_parts : made.dp);
    with_vector(problem.depth, ffn, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("activation_backward_kernel",
                    gated ? activation_backward_kernel<true, kVector, H>
                          : activation_backward_kernel<false, kVector, H>,
                    {dim3(tiles, most_row_tiles(rows, problem.groups)), kThreads,
                     sizeof(BackwardSmem), stream},
                    problem);
    });
    if (tiles > 1)
        gpu::launch("sum_parts_kernel", sum_parts_kernel,
                    gpu::one_thread_per(rows, stream), gpu::device_data<float>(made.dp),
                    problem.dp, int(tiles), problem.offsets, problem.groups, rows);
    return made;
}

}  // namespace

ActivationGradients linear_backward_activation(const Tensor& dy, const Tensor& weight,
                                               const Tensor& h, const Tensor& row_probs,
                                               const Tensor& row_ids,
                                               const RowGroups& groups,
                                               const ExpertActivation& activation,
                                               cudaStream_t stream) {
    const std::int64_t ffn = weight.dim(2);
    MOE_CHECK_EQ(dy.dim(1), weight.dim(1));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    MOE_CHECK_EQ(h.dim(1), activation.gated ? 2 * ffn : ffn);
    MOE_CHECK_EQ(h.dim(0), num_rows_of(dy, row_ids));
    const auto make = [&]<typename H>() {
        return run(
            BackwardProblem<H>{nullptr, nullptr, nullptr, gpu::device_data<bf16>(dy),
                               gpu::device_data<bf16>(weight), gpu::device_data<H>(h),
                               gpu::device_data<float>(row_probs),
                               gpu::device_data<std::int32_t>(row_ids),
                               gpu::device_data<std::int32_t>(groups.offsets),
                               int(groups.num_groups()), int(weight.dim(1)), int(ffn),
                               h.dim(0), activation},
            stream);
    };
    if (h.dtype() == DType::bf16) return make.template operator()<bf16>();
    MOE_CHECK(h.dtype() == DType::f32);
    return make.template operator()<float>();
}

}  // namespace moe::optimized
