// trace_test.cu: the timeline that CUDA_ON_CPU_TRACE writes. Executor only.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;

struct Smem {
    alignas(128) __nv_bfloat16 a[64 * 16], b[8 * 16];
    std::uint64_t full;
};

/// One warp loads, four multiply, once.
__global__ void short_kernel(float* target, const __nv_bfloat16* source) {
    auto& s = gpu::shared_memory<Smem>();
    const int t = int(threadIdx.x);
    if (t == 128) {
        ptx::mbarrier_init(&s.full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (t >= 128) {
        if (t > 128) return;
        ptx::mbarrier_arrive_expect_tx(&s.full, sizeof s.a + sizeof s.b);
        ptx::bulk_load(s.a, source, sizeof s.a, &s.full);
        ptx::bulk_load(s.b, source, sizeof s.b, &s.full);
        return;
    }
    ptx::mbarrier_wait(&s.full, 0);
    const auto plain = ptx::TileSwizzle::none;
    float d[4];
    ptx::wgmma_fence();
    ptx::wgmma_m64k16<8>(d, ptx::make_smem_desc(s.a, 1024, 128, plain),
                         ptx::make_smem_desc(s.b, 128, 128, plain), false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    target[blockIdx.x * 128 + t] = d[0];
}

TEST(Trace, ATimelineHasWaitsLoadsProductsAndPhases) {
    DeviceArray<__nv_bfloat16> source(std::vector<__nv_bfloat16>(64 * 16));
    DeviceArray<float> target(2 * 128);
    const auto file = std::filesystem::temp_directory_path() /
                      ("moe_trace_" + std::to_string(getpid()) + ".json");
    for (const char* asynchrony : {"eager", "deferred"}) {
        const ModeGuard guard("forward", asynchrony);
        ASSERT_TRUE(cuda_on_cpu::trace_to(file));
        gpu::launch("short_kernel", short_kernel, {2, 160, sizeof(Smem)}, target.data(),
                    source.data());
        // Whole after each launch
        const auto read = nlohmann::json::parse(std::ifstream(file));
        ASSERT_TRUE(cuda_on_cpu::trace_to(""));
        EXPECT_EQ(nlohmann::json::parse(std::ifstream(file)), read);

        std::map<std::string, int> count;
        std::map<int, std::int64_t> arrival, wait_end;  // by block
        for (const auto& event : read["traceEvents"]) {
            const std::string name = event["name"];
            ++count[name.substr(0, name.find_first_of("+,"))];
            if (event["ph"] != "X") continue;
            const std::int64_t end = event["ts"].get<int>() + event["dur"].get<int>();
            EXPECT_NE(std::string(event["args"]["at"]).find("trace_test.cu:"),
                      std::string::npos);
            const bool load = name.starts_with("bulk_load");
            std::int64_t& latest = (load ? arrival : wait_end)[event["pid"].get<int>()];
            if (load || name.starts_with("wait")) latest = std::max(latest, end);
        }
        EXPECT_EQ(count["process_name"], 2);  // blocks
        EXPECT_EQ(count["bulk_load to "], 4);
        EXPECT_EQ(count["wait: mbarrier "], 8);  // four warps of each block
        EXPECT_EQ(count["m64n8k16"], 8);
        EXPECT_EQ(count["mbarrier "], 2);  // a phase each
        EXPECT_EQ(count["__syncthreads opens"], 2);
        for (const auto& [block, step] : arrival) EXPECT_LE(step, wait_end[block] + 1);
    }
    std::filesystem::remove(file);
    EXPECT_FALSE(cuda_on_cpu::trace_to("/nowhere/at/all.json"));
}

}  // namespace
}  // namespace moe::test
