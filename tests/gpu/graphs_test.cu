// graphs_test.cu: graphs where streams hold their work back, and what the executor says
// of captures that went wrong. Executor only.

#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/stream.h"
#include "tests/conformance/device_array.h"
#include "tests/gpu/held_streams.h"

namespace moe::test {
namespace {

using gpu::launch;

template <typename Body>
cudaGraphExec_t capture(cudaStream_t stream, Body body) {
    EXPECT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    body();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    return exec;
}

TEST(Graphs, BranchesTakeTurnsBetweenTheStreamsEarlierAndLaterWork) {
    const auto order = [](const char* schedule) {
        Log log;
        const HeldStreams held(schedule);
        const OwnStream stream, side;
        const cudaGraphExec_t graph = capture(stream, [&] {
            log.queue(stream, '1');
            gpu::wait_for(side, stream);
            log.queue(stream, 'a');
            log.queue(side, 'x');
            gpu::wait_for(stream, side);
            log.queue(stream, '2');
        });
        log.queue(stream, '(');
        cudaGraphLaunch(graph, stream);
        log.queue(stream, ')');
        cudaGraphExecDestroy(graph);
        EXPECT_EQ(log.text, "") << "nobody has asked for anything";
        EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        return log.text;
    };
    EXPECT_EQ(order("forward"), "(1ax2)");
    EXPECT_EQ(order("reverse"), "(1xa2)");
}

__global__ void add_kernel(int* target, const int* source) {
    *target += *source;
}

TEST(Graphs, MemoryIsNewAtItsPlaceAndPoisonBehindItsEnd) {
    const OwnStream stream;
    DeviceArray<int> one(std::vector<int>{1}), sum(std::vector<int>{0});
    const cudaGraphExec_t graph = capture(stream, [&] {
        int* scratch = nullptr;
        cudaMallocAsync(&scratch, sizeof(int), stream);
        launch("add", add_kernel, {1, 1, 0, stream}, sum.data(), scratch);
        launch("add", add_kernel, {1, 1, 0, stream}, scratch, one.data());
        cudaFreeAsync(scratch, stream);
        launch("late", add_kernel, {1, 1, 0, stream}, sum.data(), scratch);
    });
    for (int step = 0; step < 2; ++step) {
        cudaMemset(sum.data(), 0, sizeof(int));
        EXPECT_EQ(cudaGraphLaunch(graph, stream), cudaSuccess);
        EXPECT_EQ(sum.to_host()[0], int(2u * 0x7FFFFFFFu));
    }
    EXPECT_EQ(cudaGraphExecDestroy(graph), cudaSuccess);
}

__global__ void trap_if_kernel(const int* flag) {
    if (*flag != 0) __trap();
}

TEST(Graphs, AFaultIsToldByTheLaunchOfTheGraph) {
    const OwnStream stream;
    DeviceArray<int> flag(std::vector<int>{1});
    const cudaGraphExec_t graph = capture(stream, [&] {
        launch("planted", trap_if_kernel, {1, 1, 0, stream}, flag.data());
    });
    EXPECT_EQ(cudaGraphLaunch(graph, stream), cudaErrorLaunchFailure);
    const std::string text = cudaGetErrorString(cudaErrorLaunchFailure);
    EXPECT_NE(text.find("kernel planted, block (0,0,0)"), std::string::npos) << text;
    cudaGetLastError();
    cudaMemset(flag.data(), 0, sizeof(int));
    EXPECT_EQ(cudaGraphLaunch(graph, stream), cudaSuccess);
    cudaGraphExecDestroy(graph);
}

TEST(Graphs, SayWhatSpoiltACapture) {
    cudaStream_t stream = nullptr;
    cudaStreamCreate(&stream);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    int* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 4), cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(memory, nullptr);
    EXPECT_STREQ(cudaGetErrorString(cudaErrorStreamCaptureUnsupported),
                 "cudaMalloc: no graph can repeat it, and the mode of a capture forbids "
                 "it");
    EXPECT_EQ(cudaLaunchHostFunc(
                  stream, [](void*) {}, nullptr),
              cudaErrorStreamCaptureInvalidated);
    cudaStreamDestroy(stream);  // ends it
    EXPECT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
    cudaFree(memory);
    cudaGetLastError();
}

TEST(Graphs, RefuseWhatTheExecutorLacks) {
    const OwnStream stream;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    int* memory = nullptr;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    cudaMallocAsync(&memory, 4, stream);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaErrorNotSupported);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaErrorInvalidResourceHandle);
    exec = capture(stream, [] {});
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    EXPECT_EQ(cudaGraphLaunch(exec, stream), cudaErrorNotSupported);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphDestroy(graph);
    cudaGraphExecDestroy(exec);
    cudaGetLastError();
}

}  // namespace
}  // namespace moe::test
