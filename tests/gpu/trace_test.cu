// trace_test.cu: the timeline that CUDA_ON_CPU_TRACE writes. Executor only.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/timeline/picture.h"
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

/// A file for a trace, gone when the test has ended.
class TraceFile {
  public:
    TraceFile()
        : path_(std::filesystem::temp_directory_path() /
                ("moe_trace_" + std::to_string(getpid()) + ".json")) {}
    ~TraceFile() { std::filesystem::remove(path_); }
    TraceFile(const TraceFile&) = delete;
    TraceFile& operator=(const TraceFile&) = delete;
    std::string path() const { return path_; }
    nlohmann::json read() const { return nlohmann::json::parse(std::ifstream(path_)); }

    /// The events of one launch.
    template <typename Launch>
    nlohmann::json events_of(Launch launch) const {
        EXPECT_TRUE(cuda_on_cpu::trace_to(path_));
        launch();
        EXPECT_TRUE(cuda_on_cpu::trace_to(""));
        return read()["traceEvents"];
    }

  private:
    std::filesystem::path path_;
};

TEST(Trace, ATimelineHasWaitsLoadsProductsAndPhases) {
    DeviceArray<__nv_bfloat16> source(std::vector<__nv_bfloat16>(64 * 16));
    DeviceArray<float> target(2 * 128);
    const TraceFile file;
    for (const char* asynchrony : {"eager", "deferred"}) {
        const ModeGuard guard("forward", asynchrony);
        ASSERT_TRUE(cuda_on_cpu::trace_to(file.path()));
        gpu::launch("short_kernel", short_kernel, {2, 160, sizeof(Smem)}, target.data(),
                    source.data());
        // Whole after each launch
        const auto read = file.read();
        ASSERT_TRUE(cuda_on_cpu::trace_to(""));
        EXPECT_EQ(file.read(), read);
        // Of the rows that the reader knows
        const auto timeline = timeline::read_timeline(read.dump(), file.path());
        ASSERT_EQ(timeline.blocks.size(), 2u);
        EXPECT_EQ(timeline.block().rows.size(), 5u + 1 + 4 + 1);
        EXPECT_EQ(timeline.block().filled.size(), 1u);
        EXPECT_NE(timeline_picture(timeline, "short").find("wgmma, warps 0-3"),
                  std::string::npos);

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
            if (load) {
                EXPECT_EQ(event["args"]["on"], "+0x900");  // s.full
            }
            if (load || name.starts_with("wait: mbarrier"))
                latest = std::max(latest, end);
        }
        EXPECT_EQ(count["process_name"], 2);  // blocks
        EXPECT_EQ(count["bulk_load to "], 4);
        EXPECT_EQ(count["wait: mbarrier "], 8);  // four warps of each block
        EXPECT_EQ(count["m64n8k16"], 8);
        EXPECT_EQ(count["mbarrier "], 2);  // a phase each
        EXPECT_EQ(count["__syncthreads opens"], 2);
        EXPECT_EQ(count["wait: __syncthreads"], 10);  // five warps of each block
        for (const auto& [block, step] : arrival) EXPECT_LE(step, wait_end[block] + 1);
    }
    EXPECT_FALSE(cuda_on_cpu::trace_to("/nowhere/at/all.json"));
}

/// Each thread copies 16 bytes twice, and waits for the first copy and then the second,
/// a barrier later; the last lane of warp 1 leaves the second out.
__global__ void copying_kernel(int* target, const int4* source) {
    auto* s = reinterpret_cast<int4*>(&gpu::shared_memory<int4[128]>());
    const int t = int(threadIdx.x);
    ptx::cp_async<16>(s + t, source + t);
    ptx::cp_async_commit();
    if (t != 63) ptx::cp_async<16>(s + 64 + t, source + 64 + t);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();
    ptx::cp_async_wait<0>();
    __syncwarp();
    target[t] = s[t].x + (t == 63 ? 0 : s[64 + t].x);
}

struct Span {
    std::int64_t begin, end;
};
/// Those bars whose name begins so, in the order of their ends.
std::vector<Span> bars(const nlohmann::json& events, const std::string& name) {
    std::vector<Span> found;
    for (const auto& event : events)
        if (event["ph"] == "X" && event["name"].get<std::string>().starts_with(name))
            found.push_back(
                {event["ts"].get<std::int64_t>(),
                 event["ts"].get<std::int64_t>() + event["dur"].get<std::int64_t>()});
    std::ranges::sort(found, {}, &Span::end);
    return found;
}

TEST(Trace, CopiesLastUntilTheyAreWaitedForABarPerInstructionOfAWarp) {
    DeviceArray<int4> source(std::vector<int4>(128));
    DeviceArray<int> target(64);
    const auto run = [&] {
        gpu::launch("copying_kernel", copying_kernel, {1, 64, 128 * sizeof(int4)},
                    target.data(), source.data());
    };
    const TraceFile file;
    for (const char* asynchrony : {"eager", "deferred"}) {
        SCOPED_TRACE(asynchrony);
        const ModeGuard guard("forward", asynchrony);
        const bool deferred = std::string(asynchrony) == "deferred";
        const nlohmann::json events = file.events_of(run);
        // Forward, the threads run in turn: a step each until the barrier.
        const std::vector<Span> waits = bars(events, "wait: __syncthreads");
        ASSERT_EQ(waits.size(), 2u);
        EXPECT_EQ(waits[0].end, waits[1].end);
        EXPECT_EQ(waits[0].end - std::min(waits[0].begin, waits[1].begin), 63);
        EXPECT_EQ(std::abs(waits[0].begin - waits[1].begin), 32);

        const std::string first = "cp.async of warp 0, 512 bytes";
        const std::vector<Span> whole = bars(events, first);
        const std::vector<Span> ragged = bars(events, "cp.async of warp 1, 496 bytes");
        ASSERT_EQ(whole.size(), 2u);
        ASSERT_EQ(ragged.size(), 1u);
        EXPECT_EQ(bars(events, "cp.async").size(), 4u);
        EXPECT_LE(whole[0].end, waits[0].end);
        EXPECT_EQ(whole[1].end > waits[0].end, deferred);
        EXPECT_EQ(ragged[0].end > waits[0].end, deferred);
        EXPECT_EQ(bars(events, "wait: __syncwarp").size(), 2u);
        EXPECT_NO_THROW(timeline::read_timeline(file.read().dump(), file.path()));
    }
}

__global__ void exiting_kernel() {
    if (threadIdx.x >= 32) return;
    __syncthreads();
}

TEST(Trace, AWaitThatEndsBecauseOthersExitEndsThere) {
    const TraceFile file;
    const ModeGuard guard("forward", "eager");
    testing::internal::CaptureStderr();  // the warning about those who left
    const nlohmann::json events = file.events_of([] {
        gpu::launch("exiting_kernel", exiting_kernel, {1, 64, 0});
    });
    testing::internal::GetCapturedStderr();
    const std::vector<Span> waits = bars(events, "wait: ");
    ASSERT_EQ(waits.size(), 1u);
    EXPECT_EQ(waits[0].end - waits[0].begin, 32);
}

}  // namespace
}  // namespace moe::test
