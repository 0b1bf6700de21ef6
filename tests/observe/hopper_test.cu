// hopper_test.cu: what Hopper's instructions do to memory, counted, and what orders it.

#include "gpu/ptx.h"
#include "gpu/tensor_map.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;

// ----------------------------------------------------------- ldmatrix and shared banks
struct TileSmem {
    alignas(1024) unsigned char bytes[8 * 128];
};

/// Eight rows of 128 bytes; the first 16 bytes of each, plain or under the 128-byte
/// swizzle.
__global__ void rows_kernel(std::uint32_t* target, bool swizzled) {
    auto& s = gpu::shared_memory<TileSmem>();
    const int lane = int(threadIdx.x);
    for (int i = lane; i < 8 * 128; i += 32) s.bytes[i] = 1;
    __syncwarp();
    const int row = lane % 8, piece = swizzled ? row : 0;
    std::uint32_t registers[1];
    ptx::ldmatrix_x1(registers, s.bytes + row * 128 + piece * 16);  // rows
    target[lane] = registers[0];
}

TEST(ObserveHopper, LdmatrixConflictsUnlessTheTileIsSwizzled) {
    DeviceArray<std::uint32_t> target(32);
    const auto rows = [&](bool swizzled) {
        return OBSERVE(rows_kernel, {1, 32, sizeof(TileSmem)}, target.data(), swizzled)
            .at("rows")
            .shared;
    };
    EXPECT_EQ(rows(false).requests, 1);
    EXPECT_EQ(rows(false).wavefronts, 8);  // all rows begin in the same four banks
    EXPECT_EQ(rows(true).wavefronts, 1);
    EXPECT_EQ(rows(true).most_ways, 1);
}

// ---------------------------------------------------------------------------- a pipeline
enum class Without { nothing, full_wait, empty_wait };

constexpr int kSteps = 5, kStages = 2;
struct RingSmem {
    alignas(1024) __nv_bfloat16 a[kStages][64 * 64];
    alignas(1024) __nv_bfloat16 b[8 * 64];
    std::uint64_t full[kStages], empty[kStages];
};

/// d (64, 8) = a (64, depth) bᵀ, as tests/conformance/pipeline_test.cu.
template <Without Missing>
__global__ void ring_kernel(float* target, const __grid_constant__ CUtensorMap map) {
    auto& s = gpu::shared_memory<RingSmem>();
    const int t = int(threadIdx.x);
    if (t == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            ptx::mbarrier_init(&s.full[stage], 1);
            ptx::mbarrier_init(&s.empty[stage], 4);
        }
        ptx::fence_mbarrier_init();
    }
    for (int i = t; i < 8 * 64; i += 160) s.b[i] = __float2bfloat16_rn(1.0f);
    ptx::fence_proxy_async();
    __syncthreads();
    if (t >= 128) {
        if (t > 128) return;
        for (int step = 0; step < kSteps; ++step) {
            const int stage = step % kStages, use = step / kStages;
            if (Missing != Without::empty_wait)
                ptx::mbarrier_wait(&s.empty[stage], (use & 1) ^ 1);
            std::uint64_t* full = &s.full[stage];
            ptx::mbarrier_arrive_expect_tx(full, 64 * 64 * 2);
            ptx::tma_load_2d(s.a[stage], &map, full, step * 64, 0);  // load
        }
        return;
    }
    float d[4];
    for (int step = 0; step < kSteps; ++step) {
        const int stage = step % kStages, use = step / kStages;
        if (Missing != Without::full_wait) ptx::mbarrier_wait(&s.full[stage], use & 1);
        const auto code = ptx::TileSwizzle::bytes_128;
        auto a = ptx::make_smem_desc(s.a[stage], 0, 1024, code);
        auto b = ptx::make_smem_desc(s.b, 0, 1024, code);
        ptx::wgmma_fence();
        for (int k = 0; k < 4; ++k, a = ptx::advance(a, 32), b = ptx::advance(b, 32))
            ptx::wgmma_m64k16<8>(d, a, b, step > 0 || k > 0);  // product
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if (t % 32 == 0) ptx::mbarrier_arrive(&s.empty[stage]);
    }
    target[t] = d[0];
}

class ObserveRing : public testing::Test {
  protected:
    ObserveRing() : source_(std::vector<__nv_bfloat16>(64 * 64 * kSteps)), target_(128) {
        gpu::TensorMapShape shape;
        shape.sizes = {64 * kSteps, 64};
        shape.box = {64, 64};
        shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
        map_ = gpu::make_tensor_map(source_.data(), shape);
    }
    template <Without Missing>
    std::string races() {
        return races_of([&] {
            gpu::launch("ring_kernel", ring_kernel<Missing>, {1, 160, sizeof(RingSmem)},
                        target_.data(), map_);
        });
    }
    std::string race(const char* one, const char* other) const {
        return race_in(__FILE__, one, other);
    }

    DeviceArray<__nv_bfloat16> source_;
    DeviceArray<float> target_;
    CUtensorMap map_;
};

TEST_F(ObserveRing, LoadsAndProductsAreCounted) {
    const Seen seen = OBSERVE(ring_kernel<Without::nothing>, {1, 160, sizeof(RingSmem)},
                              target_.data(), map_);
    EXPECT_EQ(seen.total().async_bytes, 64 * 64 * 2 * kSteps);
    EXPECT_EQ(seen.at("load").async_bytes, 64 * 64 * 2 * kSteps);
    EXPECT_EQ(seen.total().sectors_read, 64 * 64 * 2 * kSteps / 32);
    EXPECT_EQ(seen.total().mma_flops, 2 * 64 * 8 * 64 * kSteps);
}

TEST_F(ObserveRing, TheBarriersOrderLoadsAndProducts) {
    EXPECT_EQ(races<Without::nothing>(), "");
    EXPECT_EQ(races<Without::full_wait>(), race("load", "product"));
    // Here the executor itself sees a barrier go two phases ahead.
    EXPECT_THROW(races<Without::empty_wait>(), gpu::DeviceError);
    cuda_on_cpu::observe::stop();
}

// ---------------------------------------------------------------------- other orders
struct PairSmem {
    int values[64];
};

/// Two warps exchange through a named barrier; without it, a race.
template <bool Waits>
__global__ void named_kernel(int* target) {
    auto& s = gpu::shared_memory<PairSmem>();
    const int t = int(threadIdx.x);
    s.values[t] = t;  // own
    if (Waits) ptx::named_barrier_sync(3, 64);
    target[t] = s.values[63 - t];  // other
}

TEST(ObserveHopper, ANamedBarrierOrdersItsWarps) {
    DeviceArray<int> target(64);
    const auto races = [&](auto kernel) {
        return races_of([&] {
            gpu::launch("named_kernel", kernel, {1, 64, sizeof(PairSmem)}, target.data());
        });
    };
    EXPECT_EQ(races(named_kernel<true>), "");
    EXPECT_EQ(races(named_kernel<false>), race_in(__FILE__, "own", "other"));
}

/// cp.async is seen as the loads and stores of its threads.
__global__ void copies_kernel(int* target, const int* source) {
    auto& s = gpu::shared_memory<PairSmem>();
    const int t = int(threadIdx.x);
    ptx::cp_async<4>(&s.values[t], source + 2 * t);  // strided
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    target[t] = s.values[t];
}

TEST(ObserveHopper, CpAsyncIsCountedLikeLoads) {
    DeviceArray<int> source(std::vector<int>(64, 1)), target(32);
    const Seen seen =
        OBSERVE(copies_kernel, {1, 32, sizeof(PairSmem)}, target.data(), source.data());
    EXPECT_EQ(seen.at("strided").loads.requests, 1);
    EXPECT_EQ(seen.at("strided").loads.sectors, 8);  // half of each is used
    EXPECT_EQ(seen.at("strided").shared.wavefronts, 1);
}

}  // namespace
}  // namespace moe::test
