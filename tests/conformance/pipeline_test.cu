// pipeline_test.cu: the smallest kernel in which Hopper's parts play together: one warp
// loads tiles by TMA into a ring of stages, a warpgroup multiplies them, TMA stores.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor_map.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

constexpr int kM = 64, kN = 96, kK = 64, kStages = 3;
constexpr std::uint32_t kStageBytes = (kM + kN) * kK * 2;

struct PipelineSmem {
    alignas(1024) __nv_bfloat16 a[kStages][kM * kK];
    alignas(1024) __nv_bfloat16 b[kStages][kN * kK];
    alignas(128) float c[kM * kN];
    std::uint64_t full[kStages], empty[kStages];
};

/// One tile of C (M, N) = A (M, K) B (N, K)ᵀ per block; edges are clipped by the maps.
__global__ void __launch_bounds__(160)
    pipeline_kernel(const __grid_constant__ CUtensorMap map_a,
                    const __grid_constant__ CUtensorMap map_b,
                    const __grid_constant__ CUtensorMap map_c, int depth) {
    auto& s = gpu::shared_memory<PipelineSmem>();
    const int t = int(threadIdx.x), steps = (depth + kK - 1) / kK;
    const int row = int(blockIdx.y) * kM, column = int(blockIdx.x) * kN;
    if (t == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(&s.full[stage], 1);
            ptx::mbarrier_init(&s.empty[stage], 4);  // one arrival of each warp
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
            ptx::tma_load_2d(s.a[stage], &map_a, &s.full[stage], step * kK, row);
            ptx::tma_load_2d(s.b[stage], &map_b, &s.full[stage], step * kK, column);
        }
        return;
    }
    float d[kN / 2];
    for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages, use = step / kStages;
        ptx::mbarrier_wait(&s.full[stage], use & 1);
        const auto a =
            ptx::make_smem_desc(s.a[stage], 0, 1024, ptx::TileSwizzle::bytes_128);
        const auto b =
            ptx::make_smem_desc(s.b[stage], 0, 1024, ptx::TileSwizzle::bytes_128);
        ptx::wgmma_fence();
        for (int k = 0; k < kK; k += 16)
            ptx::wgmma_m64k16<kN>(d, ptx::advance(a, 2 * k), ptx::advance(b, 2 * k),
                                  step > 0 || k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (t % 32 == 0) ptx::mbarrier_arrive(&s.empty[stage]);
    }
    for (int i = 0; i < kN / 2; ++i) {
        const int r = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
        s.c[r * kN + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(1, 128);
    if (t == 0) {
        ptx::tma_store_2d(&map_c, s.c, column, row);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

TEST(ConformancePipeline, TmaAndWgmmaMultiplyAMatrixWithRaggedEdges) {
    MOE_NEEDS_HOPPER;
    const int m = 77, n = 108, k = 264;
    std::vector<__nv_bfloat16> a(m * k), b(n * k);
    for (int i = 0; i < m * k; ++i) a[i] = __float2bfloat16_rn(float(i * 7 % 13 - 6));
    for (int i = 0; i < n * k; ++i) b[i] = __float2bfloat16_rn(float(i * 5 % 11 - 5));
    std::vector<float> want(m * n);
    for (int row = 0; row < m; ++row)
        for (int column = 0; column < n; ++column)
            for (int i = 0; i < k; ++i)
                want[row * n + column] +=
                    float(a[row * k + i]) * float(b[column * k + i]);
    in_every_mode([&] {
        DeviceArray<__nv_bfloat16> da(a), db(b);
        DeviceArray<float> dc(m * n);
        const auto map = [&](const void* base, int rows, std::uint32_t box_rows) {
            gpu::TensorMapShape shape;
            shape.sizes = {std::uint64_t(k), std::uint64_t(rows)};
            shape.box = {kK, box_rows};
            shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
            return gpu::make_tensor_map(base, shape);
        };
        gpu::TensorMapShape out;
        out.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
        out.sizes = {std::uint64_t(n), std::uint64_t(m)};
        out.box = {kN, kM};
        launch("pipeline_kernel", pipeline_kernel,
               {dim3((n + kN - 1) / kN, (m + kM - 1) / kM), 160, sizeof(PipelineSmem)},
               map(da.data(), m, kM), map(db.data(), n, kN),
               gpu::make_tensor_map(dc.data(), out), k);
        EXPECT_EQ(dc.to_host(), want);
    });
}

}  // namespace
}  // namespace moe::test
