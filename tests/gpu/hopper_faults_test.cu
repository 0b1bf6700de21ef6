// hopper_faults_test.cu: bugs planted in kernels of Hopper's instructions, each with the
// words that must name it and the line. Executor only: on hardware most of them hang, or
// give wrong numbers now and then.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor_map.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;
using Swizzle = ptx::TileSwizzle;

/// What is wrong with the pipeline below.
enum class Bug {
    none,
    wrong_expect_tx_less,
    wrong_expect_tx_more,
    flipped_full_parity,
    flipped_empty_parity,
    released_too_early,
    one_arrival_too_few,
    one_arrival_too_many,
    no_init_fence,
    no_fence_before_store,
    no_fence_before_product,
    no_wgmma_fence,
    no_commit,
    no_wgmma_wait,
    no_store_wait,
    stride_off,
    wrong_swizzle,
    descriptor_past_the_end,
    base_offset,
    lanes_disagree,
    diverged_product,
    map_misused,
    destination_misaligned,
    barrier_overwritten,
    initialised_twice,
    other_rank,
    exits_before_the_load
};

constexpr int kRows = 64, kColumns = 16, kDepth = 64, kStages = 2;

struct Smem {
    alignas(1024) __nv_bfloat16 a[kStages][kRows * kDepth];
    alignas(1024) __nv_bfloat16 b[kColumns * kDepth];
    alignas(128) float c[kRows * kColumns];
    std::uint64_t full[kStages], empty[kStages];
};

// The lines that the reports must name
int line_of_full_wait, line_of_empty_wait, line_of_init, line_of_load, line_of_product,
    line_of_wait, line_of_store;
#define NOTE(name) (line_of_##name = __LINE__)

/// c (64, 16) = a (64, depth) b (16, 64)ᵀ, where each 64 of the depth meet the same b.
template <Bug bug>
__global__ void pipeline_kernel(const __grid_constant__ CUtensorMap map_a,
                                const __grid_constant__ CUtensorMap map_c,
                                const __nv_bfloat16* b, int steps) {
    auto& s = gpu::shared_memory<Smem>();
    const int t = int(threadIdx.x);
    if (t == 0) {
        for (int stage = 0; stage < kStages; ++stage) {
            const int count = bug == Bug::one_arrival_too_few    ? 5
                              : bug == Bug::one_arrival_too_many ? 3
                                                                 : 4;
            NOTE(init), ptx::mbarrier_init(&s.full[stage], 1);
            if (bug == Bug::initialised_twice) ptx::mbarrier_init(&s.full[stage], 1);
            ptx::mbarrier_init(&s.empty[stage], count);
        }
        if (bug != Bug::no_init_fence) ptx::fence_mbarrier_init();
        if (bug == Bug::barrier_overwritten) s.full[0] = 0;
    }
    const bool late = bug == Bug::no_fence_before_product;
    for (int i = t; i < kColumns * kDepth && !late; i += int(blockDim.x)) {
        const unsigned byte = 2 * unsigned(i);
        s.b[(byte ^ (byte >> 7 & 7) << 4) / 2] = b[i];
    }
    if (bug != Bug::no_init_fence) ptx::fence_proxy_async();
    for (int i = t; i < kColumns * kDepth && late; i += int(blockDim.x)) s.b[i] = b[i];
    __syncthreads();
    if (t >= 128) {
        if (t > 128) return;
        for (int step = 0; step < steps; ++step) {
            const int stage = step % kStages, use = step / kStages;
            const int flip = bug == Bug::flipped_empty_parity;
            NOTE(empty_wait), ptx::mbarrier_wait(&s.empty[stage], (use & 1) ^ 1 ^ flip);
            const int bytes =
                kRows * kDepth * 2 + (bug == Bug::wrong_expect_tx_less   ? -16
                                      : bug == Bug::wrong_expect_tx_more ? 16
                                                                         : 0);
            ptx::mbarrier_arrive_expect_tx(&s.full[stage], bytes);
            __nv_bfloat16* a = s.a[stage] + (bug == Bug::destination_misaligned ? 64 : 0);
            auto* full = &s.full[stage];
            const int x = step * kDepth;
            if constexpr (bug == Bug::map_misused)
                NOTE(load), ptx::tma_load_3d(a, &map_a, full, x, 0, 0);
            else
                NOTE(load), ptx::tma_load_2d(a, &map_a, full, x, 0);
        }
        if (bug == Bug::other_rank) NOTE(load), ptx::map_shared_rank(&s.c[0], 1);
        return;
    }
    if (bug == Bug::exits_before_the_load) return;
    float d[kColumns / 2];
    for (int step = 0; step < steps; ++step) {
        const int stage = step % kStages, use = step / kStages;
        const int flip = bug == Bug::flipped_full_parity;
        NOTE(full_wait), ptx::mbarrier_wait(&s.full[stage], (use & 1) ^ flip);
        const int stride = bug == Bug::stride_off ? 512 : 1024;
        const auto swizzle =
            bug == Bug::wrong_swizzle ? Swizzle::bytes_64 : Swizzle::bytes_128;
        auto a = ptx::make_smem_desc(s.a[stage], 0, stride, swizzle);
        auto b_tile = ptx::make_smem_desc(s.b, 0, 1024, Swizzle::bytes_128);
        if (bug == Bug::base_offset) a |= std::uint64_t{1} << 49;
        if (bug == Bug::lanes_disagree && t == 37) a = ptx::advance(a, 32);
        if (bug == Bug::descriptor_past_the_end)
            a = ptx::make_smem_desc(s.a[stage], 0, 1 << 17, swizzle);
        if (bug != Bug::no_wgmma_fence) ptx::wgmma_fence();
        for (int k = 0; k < kDepth; k += 16) {
            if (bug == Bug::diverged_product && t == 45) break;
            NOTE(product), ptx::wgmma_m64k16<kColumns>(d, ptx::advance(a, 2 * k),
                                                       ptx::advance(b_tile, 2 * k),
                                                       step > 0 || k > 0);
        }
        if (bug == Bug::released_too_early && t % 32 == 0)
            ptx::mbarrier_arrive(&s.empty[stage]);
        if (bug != Bug::no_commit) ptx::wgmma_commit();
        if (bug != Bug::no_wgmma_wait) NOTE(wait), ptx::wgmma_wait<0>();
        if (bug != Bug::released_too_early && t % 32 == 0)
            ptx::mbarrier_arrive(&s.empty[stage]);
    }
    for (int i = 0; i < kColumns / 2; ++i) {
        const int r = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
        s.c[r * kColumns + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
    if (bug != Bug::no_fence_before_store) ptx::fence_proxy_async();
    ptx::named_barrier_sync(1, 128);
    if (t == 0) {
        NOTE(store), ptx::tma_store_2d(&map_c, s.c, 0, 0);
        ptx::bulk_commit();
        if (bug != Bug::no_store_wait) ptx::bulk_wait_read<0>();
    }
}

/// What the launch says, or "wrong numbers", or "".
template <Bug bug>
std::string outcome() {
    constexpr int kSteps = 5;
    std::vector<__nv_bfloat16> a(kRows * kDepth * kSteps), b(kColumns * kDepth);
    for (std::size_t i = 0; i < a.size(); ++i)
        a[i] = __float2bfloat16_rn(float(int(i * 7 % 13) - 6));
    for (std::size_t i = 0; i < b.size(); ++i)
        b[i] = __float2bfloat16_rn(float(int(i * 5 % 11) - 5));
    DeviceArray<__nv_bfloat16> da(a), db(b);
    DeviceArray<float> dc(kRows * kColumns);
    gpu::TensorMapShape in, out;
    in.sizes = {kDepth * kSteps, kRows};
    in.box = {kDepth, kRows};
    in.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    out.type = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    out.sizes = out.strides = {kColumns};
    out.sizes.push_back(kRows);
    out.strides = {kColumns * 4};
    out.box = {kColumns, kRows};
    const CUtensorMap map_a = gpu::make_tensor_map(da.data(), in);
    const CUtensorMap map_c = gpu::make_tensor_map(dc.data(), out);
    try {
        launch("pipeline", pipeline_kernel<bug>, {1, 160, sizeof(Smem)}, map_a, map_c,
               db.data(), kSteps);
    } catch (const gpu::DeviceError& error) {
        return error.what();
    }
    const auto c = dc.to_host();
    for (int row = 0; row < kRows; ++row)
        for (int column = 0; column < kColumns; ++column) {
            float sum = 0.0f;
            for (int k = 0; k < kDepth * kSteps; ++k)
                sum += float(a[row * kDepth * kSteps + k]) *
                       float(b[column * kDepth + k % kDepth]);
            if (c[row * kColumns + column] != sum) return "wrong numbers";
        }
    return "";
}

std::string at_line(int line) {
    return "hopper_faults_test.cu:" + std::to_string(line);
}

/// In every mode the launch says `words`, and names the line.
template <Bug bug>
void expect_report(const char* words, const int& line) {
    in_every_mode([&] {
        const std::string text = outcome<bug>();
        EXPECT_NE(text.find(words), std::string::npos) << "for " << words << ": " << text;
        EXPECT_NE(text.find(at_line(line)), std::string::npos)
            << "line " << line << ": " << text;
    });
}

TEST(HopperFaults, TheKernelWithoutABugIsRight) {
    in_every_mode([] { EXPECT_EQ(outcome<Bug::none>(), ""); });
}

TEST(HopperFaults, BytesThatDoNotAddUpAreADeadlockWithBothNumbers) {
    expect_report<Bug::wrong_expect_tx_less>("8192 of 8176 bytes", line_of_full_wait);
    expect_report<Bug::wrong_expect_tx_more>("8192 of 8208 bytes", line_of_full_wait);
}

TEST(HopperFaults, AFlippedParity) {
    // The first wait for an empty stage passes no more.
    expect_report<Bug::flipped_empty_parity>("mbarrier +0x", line_of_empty_wait);
    // The consumer does not wait for the first load: it reads what is not there.
    in_every_mode([] {
        const std::string text = outcome<Bug::flipped_full_parity>();
        EXPECT_FALSE(text.empty());
    });
}

TEST(HopperFaults, AStageThatIsReleasedBeforeItWasRead) {
    // At once, the product has been formed when the stage is released: only the last
    // moment shows it.
    for (const char* schedule : {"forward", "reverse", "random:3", "priority:5"}) {
        const ModeGuard guard(schedule, "deferred");
        EXPECT_EQ(outcome<Bug::released_too_early>(), "wrong numbers") << schedule;
    }
}

TEST(HopperFaults, CountsOfArrivals) {
    expect_report<Bug::one_arrival_too_few>("4 of 5 arrivals", line_of_empty_wait);
    // The phase ends with one warp still reading: it must be that warp which lags.
    int found = 0;
    for (int seed = 0; seed < 8; ++seed) {
        const ModeGuard guard("priority:" + std::to_string(seed), "deferred");
        found += outcome<Bug::one_arrival_too_many>() != "";
    }
    EXPECT_GT(found, 0);
}

TEST(HopperFaults, MissingFences) {
    expect_report<Bug::no_init_fence>(
        "fence_mbarrier_init or fence_proxy_async must "
        "follow the init",
        line_of_load);
    expect_report<Bug::no_fence_before_store>("fence_proxy_async must come between",
                                              line_of_store);
    expect_report<Bug::no_fence_before_product>("wgmma, operand B reads shared memory",
                                                line_of_product);
    expect_report<Bug::no_wgmma_fence>("wgmma_fence must come before", line_of_product);
}

TEST(HopperFaults, WhatIsLeftOnItsWay) {
    expect_report<Bug::no_commit>("wgmma_commit must come first", line_of_wait);
    expect_report<Bug::no_wgmma_wait>("exits before its products were waited for",
                                      line_of_product);
    expect_report<Bug::no_store_wait>("bulk_commit and bulk_wait_read must follow",
                                      line_of_store);
    for (const char* schedule : {"forward", "reverse"}) {
        const ModeGuard guard(schedule, "deferred");
        const std::string text = outcome<Bug::exits_before_the_load>();
        EXPECT_NE(text.find("deadlock"), std::string::npos) << text;
    }
}

TEST(HopperFaults, Descriptors) {
    expect_report<Bug::stride_off>("stride = 512: 8 lines of 128 bytes need 1024",
                                   line_of_product);
    expect_report<Bug::wrong_swizzle>("was loaded with 128-byte swizzle",
                                      line_of_product);
    expect_report<Bug::descriptor_past_the_end>("bytes of the launch's shared memory",
                                                line_of_product);
    expect_report<Bug::base_offset>("base offset = 1: not modelled", line_of_product);
    expect_report<Bug::lanes_disagree>("brings another descriptor", line_of_product);
    expect_report<Bug::diverged_product>("wgmma", line_of_product);
}

TEST(HopperFaults, LoadsThatHardwareRefuses) {
    expect_report<Bug::map_misused>("3 coordinates for a tensor map of rank 2",
                                    line_of_load);
    expect_report<Bug::destination_misaligned>("must be aligned to 1024 bytes",
                                               line_of_load);
    expect_report<Bug::barrier_overwritten>("was overwritten", line_of_init);
    expect_report<Bug::initialised_twice>("mbarrier_invalidate it first", line_of_init);
    expect_report<Bug::other_rank>("rank = 1: the cluster has 1 block", line_of_load);
}

}  // namespace
}  // namespace moe::test
