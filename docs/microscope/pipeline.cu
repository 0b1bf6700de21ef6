// pipeline.cu: y = x Wᵀ as Hopper wants it, and the smallest kernel in which its parts
// play together: one warp loads tiles by TMA into a ring of stages, a warpgroup
// multiplies them by wgmma, TMA stores.

#include <cuda_bf16.h>

#include "core/error.h"
#include "docs/microscope/linear.h"
#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor.h"
#include "gpu/tensor_map.h"

namespace moe::microscope {
namespace {

namespace ptx = gpu::ptx;

constexpr int kRows = 64, kColumns = 96, kDepth = 64;  // of a tile of y; of a stage
constexpr int kStages = 3;
constexpr std::uint32_t kStageBytes = (kRows + kColumns) * kDepth * 2;

// TUTORIAL: a row of a stage is 128 bytes, and TMA permutes the pieces of 16 bytes within
// it ("swizzle 128B") so that wgmma finds eight rows of one column in different banks.
// The permutation repeats every 1024 bytes, hence the alignment.
struct Pipeline {
    alignas(1024) __nv_bfloat16 x[kStages][kRows * kDepth];
    alignas(1024) __nv_bfloat16 weight[kStages][kColumns * kDepth];
    alignas(128) float y[kRows * kColumns];
    std::uint64_t full[kStages], empty[kStages];
};

/// One block per tile of y; edges are clipped by the maps.
__global__ void __launch_bounds__(160)
    pipelined_kernel(const __grid_constant__ CUtensorMap map_y,
                     const __grid_constant__ CUtensorMap map_x,
                     const __grid_constant__ CUtensorMap map_weight, int in) {
    auto& s = gpu::shared_memory<Pipeline>();
    const int t = int(threadIdx.x), steps = (in + kDepth - 1) / kDepth;
    const int row = int(blockIdx.y) * kRows;
    const int column = int(blockIdx.x) * kColumns;
    if (t == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(&s.full[stage], 1);
            ptx::mbarrier_init(&s.empty[stage], 4);  // one of each warp
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (t >= 128) {  // the producer: one thread of the last warp
        if (t > 128) return;
        for (int step = 0; step < steps; ++step) {
            const int stage = step % kStages, use = step / kStages;
            ptx::mbarrier_wait(&s.empty[stage], (use & 1) ^ 1);
            ptx::mbarrier_arrive_expect_tx(&s.full[stage], kStageBytes);
            ptx::tma_load_2d(s.x[stage], &map_x, &s.full[stage], step * kDepth, row);
            ptx::tma_load_2d(s.weight[stage], &map_weight, &s.full[stage], step * kDepth,
                             column);
        }
        return;
    }
    float d[kColumns / 2];  // of this thread, see the PTX ISA
    for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages, use = step / kStages;
        ptx::mbarrier_wait(&s.full[stage], use & 1);
        const auto tile = [](const __nv_bfloat16* start) {
            return ptx::make_smem_desc(start, 0, 1024, ptx::TileSwizzle::bytes_128);
        };
        const auto x = tile(s.x[stage]), weight = tile(s.weight[stage]);
        ptx::wgmma_fence();
        for (int k = 0; k < kDepth; k += 16)
            ptx::wgmma_m64k16<kColumns>(d, ptx::advance(x, 2 * k),
                                        ptx::advance(weight, 2 * k), step > 0 || k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (t % 32 == 0) ptx::mbarrier_arrive(&s.empty[stage]);
    }
    for (int i = 0; i < kColumns / 2; ++i) {
        const int r = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
        s.y[r * kColumns + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(1, 128);
    if (t == 0) {
        ptx::tma_store_2d(&map_y, s.y, column, row);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

void require_multiple(const char* name, std::int64_t value, int of) {
    if (value % of != 0)
        reject(name, value,
               fmt::format("must be a multiple of {}, as TMA wants rows that begin at "
                           "multiples of 16 bytes",
                           of));
}

/// Of an operand (rows, in), in boxes of so many rows and one stage's depth.
CUtensorMap operand_map(const Tensor& operand, std::uint32_t box_rows) {
    gpu::TensorMapShape shape;
    shape.sizes = {std::uint64_t(operand.dim(1)), std::uint64_t(operand.dim(0))};
    shape.box = {kDepth, box_rows};
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return gpu::make_tensor_map(gpu::device_data<__nv_bfloat16>(operand), shape);
}

}  // namespace

Tensor linear_pipelined(const Tensor& x, const Tensor& weight) {
    const std::int64_t rows = x.dim(0), in = x.dim(1), out = weight.dim(0);
    require_multiple("in", in, 8);
    require_multiple("out", out, 4);
    Tensor y = gpu::device_empty<float>({rows, out});
    gpu::TensorMapShape results;
    results.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    results.sizes = {std::uint64_t(out), std::uint64_t(rows)};
    results.box = {kColumns, kRows};
    const dim3 grid(unsigned((out + kColumns - 1) / kColumns),
                    unsigned((rows + kRows - 1) / kRows));
    gpu::launch("pipelined_kernel", pipelined_kernel, {grid, 160, sizeof(Pipeline)},
                gpu::make_tensor_map(gpu::device_data<float>(y), results),
                operand_map(x, kRows), operand_map(weight, kColumns), int(in));
    return y;
}

}  // namespace moe::microscope
