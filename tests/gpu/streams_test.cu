// streams_test.cu: streams that hold their work back run what is demanded, when it is
// demanded, and no more. Executor only.

#include <gtest/gtest.h>

#include <thread>

#include "cli/gpu_check/child.h"
#include "cli/places.h"
#include "gpu/launch.h"
#include "gpu/stream.h"
#include "tests/conformance/device_array.h"
#include "tests/gpu/held_streams.h"

namespace moe::test {
namespace {

using gpu::launch;

TEST(Streams, RunWhatIsDemandedAndWhatThatDependsOn) {
    Log log;
    const HeldStreams held;
    const OwnStream a, b, c;
    log.queue(a, 'a');
    cudaEventRecord(a.event, a);
    log.queue(a, 'A');
    log.queue(c, 'c');
    log.queue(b, 'b');
    cudaStreamWaitEvent(b, a.event);
    log.queue(b, 'B');
    EXPECT_EQ(log.text, "");
    EXPECT_EQ(cudaEventSynchronize(a.event), cudaSuccess);
    EXPECT_EQ(log.text, "a");
    EXPECT_EQ(cudaStreamSynchronize(b), cudaSuccess);
    EXPECT_EQ(log.text, "abB");
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(log.text, "abBAc");
}

TEST(Streams, AnEventIsAPlaceInItsStream) {
    Log log;
    const HeldStreams held;
    const OwnStream a;
    OwnStream b;
    cudaStreamWaitEvent(b, a.event);  // not recorded: nothing to wait for
    log.queue(b, '0');
    log.queue(a, 'a');
    cudaEventRecord(a.event, a);
    cudaStreamWaitEvent(b, a.event);
    log.queue(a, 'A');
    cudaEventRecord(a.event, a);  // whoever waited before waits for the place before
    log.queue(b, 'b');
    cudaEvent_t gone = b.event;
    cudaEventRecord(gone, a);
    cudaStreamWaitEvent(b, gone);
    cudaEventDestroy(gone);  // does not undo the wait
    cudaEventCreate(&b.event);
    log.queue(b, 'B');
    cudaEventRecord(b.event, b);
    EXPECT_EQ(cudaEventQuery(a.event), cudaErrorNotReady);
    float milliseconds = 0;
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, a.event, b.event), cudaErrorNotReady);
    EXPECT_EQ(cudaEventSynchronize(b.event), cudaSuccess);
    EXPECT_EQ(log.text, "a0bAB");
    EXPECT_EQ(cudaEventQuery(a.event), cudaSuccess);
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, a.event, b.event), cudaSuccess);
    EXPECT_GE(milliseconds, 0.0f);
}

TEST(Streams, TheDefaultStreamAndBlockingOnesWaitForEachOther) {
    for (const char* order : kStreamOrders) {
        Log log;
        const HeldStreams held(order);
        const OwnStream blocking(cudaStreamDefault), free;
        log.queue(blocking, 'a');
        log.queue(free, 'x');
        log.queue(nullptr, 'b');
        log.queue(blocking, 'c');
        log.queue(nullptr, 'd');
        log.queue(blocking, 'e');
        EXPECT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
        EXPECT_EQ(log.text, "abcde") << "and not the non-blocking one";
    }
}

TEST(Streams, TakeTurnsAsTheScheduleSays) {
    const auto order = [](const char* schedule) {
        Log log;
        const HeldStreams held(schedule);
        const OwnStream a, b;
        for (char letter : {'0', '1', '2'}) log.queue(a, letter);
        for (char letter : {'a', 'b', 'c'}) log.queue(b, letter);
        for (char letter : {'x', 'y', 'z'}) log.queue(nullptr, letter);
        EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        return log.text;
    };
    EXPECT_EQ(order("forward"), "xyz012abc");
    EXPECT_EQ(order("reverse"), "abc012xyz");
    const std::string random = order("random:5");
    EXPECT_EQ(random, order("random:5"));
    EXPECT_NE(random, order("random:6"));
    for (const char* own : {"xyz", "012", "abc"}) {  // each in its own order
        std::string found;
        for (char letter : random)
            if (std::string(own).find(letter) != std::string::npos) found += letter;
        EXPECT_EQ(found, own) << random;
    }
}

TEST(Streams, AQueryIsNotReadyAndComesToAnEnd) {
    Log log;
    const HeldStreams held;
    const OwnStream a;
    log.queue(a, '1');
    log.queue(a, '2');
    EXPECT_EQ(cudaStreamQuery(a), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(a), cudaErrorNotReady);
    EXPECT_EQ(cudaStreamQuery(a), cudaSuccess);
    EXPECT_EQ(log.text, "12");
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "not ready is no error";
}

TEST(Streams, WorkOutlivesItsStream) {
    Log log;
    const HeldStreams held;
    {
        const OwnStream a;
        log.queue(a, 'a');
    }
    EXPECT_EQ(log.text, "");
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(log.text, "a");
    EXPECT_EQ(cudaLaunchHostFunc(reinterpret_cast<cudaStream_t>(&log), [](void*) {}, {}),
              cudaErrorInvalidResourceHandle);
    cudaGetLastError();
}

// ------------------------------------------------------------------------------- kernels
__global__ void set_kernel(int* target, int value) {
    *target = value;
}
__global__ void add_kernel(int* target, const int* source) {
    *target += *source;
}

TEST(Streams, KernelsKeepTheArgumentsOfTheirLaunch) {
    const HeldStreams held;
    const gpu::Stream side;
    DeviceArray<int> a(std::vector<int>{0});
    int value = 7;
    gpu::wait_for(side.get(), nullptr);
    launch("set", set_kernel, {1, 1, 0, side.get()}, a.data(), value);
    value = 8;
    EXPECT_EQ(a.to_host()[0], 7);
}

TEST(Streams, AMissingWaitShows) {
    // c = a + b, a made on a side stream: with both waits, and with either missing.
    const auto sum = [](const char* order, bool before, bool after) {
        const HeldStreams held(order);
        const gpu::Stream side;
        DeviceArray<int> a(1), b(std::vector<int>{1}), c(1);
        launch("set", set_kernel, {1, 1}, a.data(), 1);
        launch("set", set_kernel, {1, 1}, c.data(), 0);
        if (before) gpu::wait_for(side.get(), nullptr);
        launch("add", add_kernel, {1, 1, 0, side.get()}, a.data(), b.data());
        if (after) gpu::wait_for(nullptr, side.get());
        launch("add", add_kernel, {1, 1}, c.data(), a.data());
        return c.to_host()[0];
    };
    for (const char* order : kStreamOrders) EXPECT_EQ(sum(order, true, true), 2);
    EXPECT_NE(sum("forward", true, false), 2);
    EXPECT_NE(sum("reverse", false, false), 2);
}

__global__ void trap_kernel() {
    __trap();
}

TEST(Streams, AFailureIsToldByTheCallThatRanTheKernelAndByEveryLaterOne) {
    const HeldStreams held;
    DeviceArray<int> a(std::vector<int>{5});
    int host = 0;
    const auto copy = [&] {
        return cudaMemcpy(&host, a.data(), sizeof host, cudaMemcpyDeviceToHost);
    };
    launch("planted", trap_kernel, {1, 1});
    EXPECT_EQ(copy(), cudaErrorLaunchFailure);
    const std::string text = cudaGetErrorString(cudaErrorLaunchFailure);
    EXPECT_NE(text.find("kernel planted, block (0,0,0)"), std::string::npos) << text;
    EXPECT_EQ(copy(), cudaErrorLaunchFailure) << "until cudaGetLastError()";
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
    EXPECT_EQ(copy(), cudaSuccess);
    EXPECT_EQ(host, 5);
    launch("planted", trap_kernel, {1, 1});
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "told once";
    EXPECT_EQ(copy(), cudaSuccess);
    // What a destructor swallows, the next call tells, on every CPU thread.
    launch("planted", trap_kernel, {1, 1});
    std::thread other([&] {
        EXPECT_EQ(cudaGetLastError(), cudaSuccess);
        { const DeviceArray<int> brief(1); }
        EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
    });
    other.join();
    EXPECT_EQ(copy(), cudaErrorLaunchFailure);
    EXPECT_EQ(cudaGetLastError(), cudaErrorLaunchFailure);
}

// ----------------------------------------------------------------------- whole programs
TEST(Streams, TheConformanceTestsPassWhenWorkIsHeld) {
    const auto ending = gpu_check::run_child(
        {.arguments = {"env", "CUDA_ON_CPU_STREAMS=held", "CUDA_ON_CPU_SCHEDULE=reverse",
                       own_program(), "--gtest_brief=1",
                       "--gtest_filter=Conformance*-ConformanceNumbers/*:"
                       "ConformanceArithmetic/*:ConformanceIntrinsics.*"}},
        300.0, [](double) {});
    EXPECT_TRUE(ending.ok()) << gpu_check::in_words(ending)
                             << "; CUDA_ON_CPU_STREAMS=held ./moe test "
                                "--gtest_filter=Conformance* shows why";
}

TEST(Streams, AnUnknownModeIsRefused) {
    EXPECT_EXIT(
        {
            setenv("CUDA_ON_CPU_STREAMS", "lazy", 1);
            cuda_on_cpu::options();
        },
        testing::ExitedWithCode(2),
        "^cuda_on_cpu: CUDA_ON_CPU_STREAMS = lazy: must be eager or held\n$");
}

}  // namespace
}  // namespace moe::test
