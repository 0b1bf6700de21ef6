// What gpu/ does beside tensors and launches: counting, and opening libraries.

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "core/buffer_pool.h"
#include "core/transfer.h"
#include "gpu/cast.h"
#include "gpu/counters.h"
#include "gpu/device_facts.h"
#include "gpu/library.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

TEST(Counters, SeeMemoryComeAndGo) {
    NEEDS_DEVICE();
    const gpu::Counters before = gpu::counters();
    gpu::reset_peak();
    Tensor kept = gpu::device_empty<float>({100});
    {
        const Tensor brief = gpu::device_empty<double>({1000});
        EXPECT_EQ(gpu::counters().bytes - before.bytes, 400 + 8000);
    }
    EXPECT_EQ(gpu::counters().bytes - before.bytes, 400);
    EXPECT_EQ(gpu::counters().peak_bytes - before.bytes, 8400);
    gpu::reset_peak();
    EXPECT_EQ(gpu::counters().peak_bytes - before.bytes, 400);
    kept = {};
    EXPECT_EQ(gpu::counters().bytes, before.bytes);
    EXPECT_EQ(gpu::counters().peak_bytes - before.bytes, 400) << "it was so high";
}

TEST(Counters, SeeWhatTensorsUseOfAPool) {
    NEEDS_DEVICE();
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    const gpu::Counters before = gpu::counters();
    for (int again = 0; again < 2; ++again) {
        gpu::reset_peak();
        {
            const Tensor brief = gpu::device_empty<double>({1000});
            EXPECT_EQ(gpu::counters().bytes - before.bytes, 8000);
        }
        EXPECT_EQ(gpu::counters().bytes, before.bytes) << "kept, but by no tensor";
        EXPECT_EQ(gpu::counters().peak_bytes - before.bytes, 8000);
    }
    EXPECT_EQ(pool.allocations(), 1);
}

TEST(Counters, SeeTheHostWaitForCopies) {
    NEEDS_DEVICE();
    const auto waits = [start = gpu::counters().host_waits] {
        return gpu::counters().host_waits - start;
    };
    const Tensor device = gpu::to_device(std::vector<float>(7, 1.0f));
    EXPECT_EQ(waits(), 1) << "from the host";
    const Tensor second = device.clone();
    EXPECT_EQ(waits(), 1) << "within the device nobody waits";
    EXPECT_EQ(gpu::to_host<float>(second), std::vector<float>(7, 1.0f));
    EXPECT_EQ(waits(), 2) << "to the host";
    // An address inside a tensor is the device's, too
    const TensorView tail{static_cast<float*>(second.view().bytes) + 3,
                          DType::f32,
                          {4},
                          MemorySpace::device};
    copy(tail, gpu::to_device(std::vector<float>(4, 2.0f)));
    EXPECT_EQ(waits(), 3) << "only that of to_device()";
}

TEST(Cast, GivesWhatTheHostGivesAndNobodyWaits) {
    NEEDS_DEVICE();
    std::vector<float> values = {0.0f, -0.0f, 1e-45f, 3.4e38f, -INFINITY, 65537.0f};
    for (const float tie : {1.0f + 0x1p-8f, 1.0f + 0x3p-8f, -1.0f - 0x1p-8f})
        for (const float beside : {-0x1p-20f, 0.0f, 0x1p-20f})
            values.push_back(tie + beside);
    const Tensor wide = Tensor::from({5, 3}, values);
    const Tensor rounded = transfer(wide, {MemorySpace::host, DType::bf16});
    const Tensor device = transfer(wide, {MemorySpace::device, DType::f32});
    const gpu::Counters before = gpu::counters();
    const Tensor narrow = gpu::cast(device, DType::bf16);
    const Tensor again = gpu::cast(narrow, DType::f32);
    EXPECT_EQ(gpu::cast(device, DType::f32).view().bytes, device.view().bytes);
    EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
    EXPECT_EQ(gpu::counters().launches, before.launches + 2);
    EXPECT_TRUE(
        BitwiseEqual(transfer(narrow, {MemorySpace::host, DType::bf16}), rounded));
    EXPECT_TRUE(BitwiseEqual(transfer(again, {MemorySpace::host, DType::f32}),
                             transfer(rounded, {MemorySpace::host, DType::f32})));
    EXPECT_EQ(gpu::cast(gpu::device_empty<float>({0, 3}), DType::bf16).shape(),
              (Shape{0, 3}));
}

TEST(CurrentStream, IsTheInnermostGuardsAndEachThreadsOwn) {
    NEEDS_DEVICE();
    EXPECT_EQ(gpu::current_stream(), nullptr);
    const gpu::Stream one, other;
    {
        const gpu::StreamGuard outer(one.get());
        {
            const gpu::StreamGuard inner(other.get());
            EXPECT_EQ(gpu::current_stream(), other.get());
        }
        EXPECT_EQ(gpu::current_stream(), one.get());
        std::thread([] { EXPECT_EQ(gpu::current_stream(), nullptr); }).join();
    }
    EXPECT_EQ(gpu::current_stream(), nullptr);
}

TEST(DeviceFacts, NameWhatTheDeviceIs) {
    NEEDS_DEVICE();
    const auto facts = gpu::device_facts();
    for (const char* name : {"compute capability", "multiprocessors", "memory",
                             "L2 cache", "CUDA driver", "CUDA runtime"})
        EXPECT_NE(facts.at(name), "") << name;
    EXPECT_GT(gpu::l2_bytes(), 0);
    if (gpu::is_emulated()) {
        EXPECT_EQ(gpu::device_state(), "") << "a CPU has other words";
    }
}

// ------------------------------------------------------- libraries opened at run time

TEST(Library, OpensTheFirstThatIsThere) {
    const gpu::Library library({"libnowhere.so.1", "libm.so.6"});
    ASSERT_TRUE(library.found());
    EXPECT_EQ(library.where(), "libm.so.6");
    auto* cosine = library.function<double(double)>("cos");
    ASSERT_NE(cosine, nullptr);
    EXPECT_EQ(cosine(1.0), std::cos(1.0));
    EXPECT_EQ(library.function<void()>("no_such_function"), nullptr);
}

TEST(Library, SaysWhyThereIsNone) {
    const gpu::Library library({"libnowhere.so.1", "libnowhere.so"});
    EXPECT_FALSE(library.found());
    EXPECT_NE(library.where().find("libnowhere.so.1"), std::string::npos);
    EXPECT_EQ(count_lines(library.where()), 0);
    EXPECT_EQ(library.function<void()>("cos"), nullptr);
}

TEST_F(CliTest, LibraryLooksFirstWhereItIsTold) {
    namespace fs = std::filesystem;
    const fs::path real = "/lib/x86_64-linux-gnu/libm.so.6";
    if (!fs::exists(real)) GTEST_SKIP() << "no " << real;
    fs::create_directories(path("lib"));
    fs::copy_file(fs::canonical(real), path("lib/libm.so.6"));
    ASSERT_EQ(setenv("MOE_LIBRARY_PATH", (path("none") + ":" + path("lib")).c_str(), 1),
              0);
    const gpu::Library library({"libm.so.6"});
    unsetenv("MOE_LIBRARY_PATH");
    ASSERT_TRUE(library.found());
    EXPECT_EQ(library.where(), path("lib/libm.so.6"));
}

}  // namespace
}  // namespace moe::test
