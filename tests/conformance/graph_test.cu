// graph_test.cu: what streams get while they are captured, and what a graph of it does.

#include <gtest/gtest.h>

#include <thread>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

using gpu::launch;

struct CaptureStream {
    explicit CaptureStream(unsigned flags = cudaStreamNonBlocking) {
        cudaStreamCreateWithFlags(&stream, flags);
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    }
    ~CaptureStream() {
        cudaStreamDestroy(stream);
        cudaEventDestroy(event);
    }
    operator cudaStream_t() const { return stream; }
    cudaError_t begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) const {
        return cudaStreamBeginCapture(stream, mode);
    }
    cudaStreamCaptureStatus status() const {
        cudaStreamCaptureStatus found = cudaStreamCaptureStatusNone;
        EXPECT_EQ(cudaStreamIsCapturing(stream, &found), cudaSuccess);
        return found;
    }
    void wait_for(const CaptureStream& other) const {
        EXPECT_EQ(cudaEventRecord(other.event, other), cudaSuccess);
        EXPECT_EQ(cudaStreamWaitEvent(stream, other.event, 0), cudaSuccess);
    }
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
};

/// What a capture that begins in `stream` makes, to be launched.
class CapturedGraph {
  public:
    template <typename Body>
    CapturedGraph(const CaptureStream& stream, Body body) {
        cudaDeviceSynchronize();  // no captured stream waits for the default one
        EXPECT_EQ(stream.begin(), cudaSuccess);
        EXPECT_EQ(stream.status(), cudaStreamCaptureStatusActive);
        body();
        cudaGraph_t graph = nullptr;
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        EXPECT_EQ(stream.status(), cudaStreamCaptureStatusNone);
        EXPECT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
        EXPECT_EQ(cudaGraphInstantiate(&exec_, graph, 0), cudaSuccess);
        EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
    }
    ~CapturedGraph() { EXPECT_EQ(cudaGraphExecDestroy(exec_), cudaSuccess); }
    void launch(cudaStream_t stream) const {
        EXPECT_EQ(cudaGraphLaunch(exec_, stream), cudaSuccess);
    }
    std::size_t nodes = 0;

  private:
    cudaGraphExec_t exec_ = nullptr;
};

__global__ void scale_add_kernel(int* y, const int* x, int factor) {
    const int i = int(threadIdx.x);
    y[i] = factor * y[i] + x[i];
}

TEST(ConformanceGraph, RepeatsLaunchesWithTheArgumentsOfTheirCapture) {
    const CaptureStream stream;
    DeviceArray<int> x(std::vector<int>{1, 2, 3}), y(std::vector<int>{0, 1, 0});
    int factor = 3;
    const CapturedGraph graph(stream, [&] {
        launch("scale_add", scale_add_kernel, {1, 3, 0, stream}, y.data(), x.data(),
               factor);
        factor = 5;
        launch("scale_add", scale_add_kernel, {1, 3, 0, stream}, y.data(), x.data(), 1);
    });
    EXPECT_EQ(graph.nodes, 2u);
    EXPECT_EQ(y.to_host(), (std::vector<int>{0, 1, 0})) << "a capture runs nothing";
    graph.launch(stream);
    EXPECT_EQ(y.to_host(), (std::vector<int>{2, 7, 6}));
    const std::vector<int> other = {10, 20, 30};  // read when the kernel runs
    cudaMemcpy(x.data(), other.data(), 12, cudaMemcpyHostToDevice);
    graph.launch(nullptr);
    EXPECT_EQ(y.to_host(), (std::vector<int>{26, 61, 78}));
}

TEST(ConformanceGraph, KeepsTheOrderThatEventsMake) {
    // (x + y) in one branch, y * 5 + y in the other, behind the first step of both
    const CaptureStream stream, side;
    DeviceArray<int> x(std::vector<int>{1}), y(std::vector<int>{2}), z(1), sum(1);
    const CapturedGraph graph(stream, [&] {
        launch("y", scale_add_kernel, {1, 1, 0, stream}, y.data(), x.data(), 2);
        side.wait_for(stream);
        EXPECT_EQ(side.status(), cudaStreamCaptureStatusActive);
        cudaMemcpyAsync(z.data(), y.data(), 4, cudaMemcpyDeviceToDevice, side);
        launch("z", scale_add_kernel, {1, 1, 0, side}, z.data(), y.data(), 5);
        launch("x", scale_add_kernel, {1, 1, 0, stream}, x.data(), y.data(), 1);
        stream.wait_for(side);
        cudaMemsetAsync(sum.data(), 0, 4, stream);
        launch("sum", scale_add_kernel, {1, 1, 0, stream}, sum.data(), x.data(), 1);
        launch("sum", scale_add_kernel, {1, 1, 0, stream}, sum.data(), z.data(), 1);
    });
    EXPECT_EQ(graph.nodes, 7u);
    EXPECT_EQ(side.status(), cudaStreamCaptureStatusNone);
    int expected_x = 1, expected_y = 2;
    for (int step = 0; step < 3; ++step) {
        graph.launch(stream);
        expected_y = 2 * expected_y + expected_x;
        expected_x += expected_y;
        EXPECT_EQ(sum.to_host()[0], expected_x + 6 * expected_y) << step;
    }
}

TEST(ConformanceGraph, LaunchesOfOneGraphFollowEachOther) {
    const CaptureStream one, other, side;
    DeviceArray<int> x(std::vector<int>{1}), y(std::vector<int>{0});
    const CapturedGraph graph(one, [&] {
        side.wait_for(one);
        launch("y", scale_add_kernel, {1, 1, 0, side}, y.data(), x.data(), 2);
        one.wait_for(side);
        launch("y", scale_add_kernel, {1, 1, 0, one}, y.data(), x.data(), 1);
    });
    for (int step = 0; step < 3; ++step) {
        graph.launch(one);
        graph.launch(other);
    }
    EXPECT_EQ(y.to_host()[0], 126);  // y -> 2 y + 2, six times
}

TEST(ConformanceGraph, HasMemoryOfItsOwn) {
    const CaptureStream stream;
    DeviceArray<int> x(std::vector<int>{1, 2, 3}), y(std::vector<int>{0, 0, 0});
    const CapturedGraph graph(stream, [&] {
        int* scratch = nullptr;
        EXPECT_EQ(cudaMallocAsync(&scratch, 12, stream), cudaSuccess);
        cudaMemsetAsync(scratch, 0, 12, stream);
        launch("scratch", scale_add_kernel, {1, 3, 0, stream}, scratch, x.data(), 1);
        launch("y", scale_add_kernel, {1, 3, 0, stream}, y.data(), scratch, 1);
        EXPECT_EQ(cudaFreeAsync(scratch, stream), cudaSuccess);
    });
    EXPECT_EQ(graph.nodes, 5u);
    graph.launch(stream);
    graph.launch(stream);
    EXPECT_EQ(y.to_host(), (std::vector<int>{2, 4, 6}));
}

TEST(ConformanceGraph, CopiesPinnedMemoryAndCallsTheHostWhenItIsLaunched) {
    const CaptureStream stream;
    DeviceArray<int> device(1);
    int *source = nullptr, *target = nullptr, calls = 0;
    cudaMallocHost(&source, 4);
    cudaMallocHost(&target, 4);
    const CapturedGraph graph(stream, [&] {
        cudaMemcpyAsync(device.data(), source, 4, cudaMemcpyHostToDevice, stream);
        cudaMemcpyAsync(target, device.data(), 4, cudaMemcpyDeviceToHost, stream);
        cudaLaunchHostFunc(
            stream, [](void* count) { ++*static_cast<int*>(count); }, &calls);
    });
    EXPECT_EQ(graph.nodes, 3u);
    EXPECT_EQ(calls, 0);
    for (int step = 1; step < 4; ++step) {
        *source = 10 * step;
        graph.launch(stream);
        EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
        EXPECT_EQ(*target, 10 * step);
        EXPECT_EQ(calls, step);
    }
    cudaFreeHost(source);
    cudaFreeHost(target);
}

// -------------------------------------------------------------------- what is forbidden
/// What `forbidden` says while `stream` is captured. The capture is spoilt by it.
template <typename Forbidden>
cudaError_t error_while_capturing(const CaptureStream& stream, Forbidden forbidden) {
    EXPECT_EQ(stream.begin(), cudaSuccess);
    const cudaError_t error = forbidden();
    cudaStreamCaptureStatus status = stream.status();
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    EXPECT_EQ(stream.status(), cudaStreamCaptureStatusNone);
    cudaGetLastError();
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess) << "as good as new";
    return error;
}

TEST(ConformanceGraph, NobodyWaitsForWhatIsCaptured) {
    const CaptureStream stream;
    EXPECT_EQ(
        error_while_capturing(stream, [&] { return cudaStreamSynchronize(stream); }),
        cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(error_while_capturing(stream, [&] { return cudaStreamQuery(stream); }),
              cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(error_while_capturing(stream, [] { return cudaDeviceSynchronize(); }),
              cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(error_while_capturing(stream,
                                    [&] {
                                        cudaEventRecord(stream.event, stream);
                                        return cudaEventSynchronize(stream.event);
                                    }),
              cudaErrorCapturedEvent);
}

TEST(ConformanceGraph, TheModeSaysWhatElseIsForbidden) {
    const CaptureStream stream;
    int* memory = nullptr;
    EXPECT_EQ(error_while_capturing(stream, [&] { return cudaMalloc(&memory, 4); }),
              cudaErrorStreamCaptureUnsupported);
    for (const auto mode :
         {cudaStreamCaptureModeRelaxed, cudaStreamCaptureModeThreadLocal}) {
        ASSERT_EQ(stream.begin(mode), cudaSuccess);
        const auto allocate = [&] {
            EXPECT_EQ(cudaMalloc(&memory, 4), cudaSuccess);
            EXPECT_EQ(cudaFree(memory), cudaSuccess);
        };
        if (mode == cudaStreamCaptureModeRelaxed)
            allocate();
        else
            std::thread(allocate).join();
        cudaGraph_t graph = nullptr;
        EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
        cudaGraphDestroy(graph);
    }
}

TEST(ConformanceGraph, TheLegacyStreamIsNotCapturedNorUsedBesideAnOrdinaryOne) {
    EXPECT_EQ(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal),
              cudaErrorStreamCaptureUnsupported);
    cudaGetLastError();
    DeviceArray<int> x(1);
    const CaptureStream blocking(cudaStreamDefault), stream;
    const auto fill = [&] { return cudaMemsetAsync(x.data(), 0, 4, nullptr); };
    EXPECT_EQ(error_while_capturing(blocking, fill), cudaErrorStreamCaptureImplicit);
    ASSERT_EQ(stream.begin(), cudaSuccess);
    EXPECT_EQ(fill(), cudaSuccess) << "nothing to do with each other";
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphDestroy(graph);
}

TEST(ConformanceGraph, DependsOnNothingOutside) {
    const CaptureStream stream, other;
    DeviceArray<int> x(1);
    EXPECT_EQ(error_while_capturing(stream,
                                    [&] {
                                        cudaEventRecord(other.event, other);
                                        return cudaStreamWaitEvent(stream, other.event,
                                                                   0);
                                    }),
              cudaErrorStreamCaptureIsolation);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(other.begin(), cudaSuccess);
    EXPECT_EQ(error_while_capturing(stream,
                                    [&] {
                                        cudaEventRecord(other.event, other);
                                        return cudaStreamWaitEvent(stream, other.event,
                                                                   0);
                                    }),
              cudaErrorStreamCaptureMerge);
    EXPECT_EQ(cudaStreamEndCapture(other, &graph), cudaErrorStreamCaptureInvalidated);
    cudaGetLastError();
}

TEST(ConformanceGraph, EndsWhereItBeganWithAllBranchesJoined) {
    const CaptureStream stream, side;
    DeviceArray<int> x(1);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(stream.begin(), cudaSuccess);
    side.wait_for(stream);
    cudaMemsetAsync(x.data(), 0, 4, side);
    EXPECT_EQ(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
    EXPECT_EQ(graph, nullptr);
    cudaGetLastError();
    EXPECT_EQ(side.status(), cudaStreamCaptureStatusNone);
    ASSERT_EQ(stream.begin(), cudaSuccess);
    side.wait_for(stream);
    EXPECT_EQ(cudaStreamEndCapture(side, &graph), cudaErrorStreamCaptureUnmatched);
    cudaStreamEndCapture(stream, &graph);
    cudaGetLastError();
}

}  // namespace
}  // namespace moe::test
