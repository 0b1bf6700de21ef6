// graphs_test.cu: what a launch of a graph does is seen as if its calls were made, in the
// order that the capture's streams and events gave them.

#include "gpu/stream.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

__global__ void add_kernel(float* values, float amount) {
    values[threadIdx.x] += amount;  // add
}

class ObserveGraphs : public testing::Test {
  protected:
    ~ObserveGraphs() override {
        for (cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
    }
    void add(const gpu::Stream& stream) {
        gpu::launch("add_kernel", add_kernel, {1, 32, 0, stream.get()}, values_.data(),
                    1.0f);
    }
    template <typename Body>
    cudaGraphExec_t capture(const gpu::Stream& stream, Body body) {
        EXPECT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal),
                  cudaSuccess);
        body();
        cudaGraph_t graph = nullptr;
        EXPECT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
        cudaGraphExec_t exec = nullptr;
        EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
        cudaGraphDestroy(graph);
        graphs_.push_back(exec);
        return exec;
    }
    /// Adds in a branch of its own, and meanwhile here unless it waits.
    cudaGraphExec_t capture_branches(bool waits) {
        return capture(one_, [&] {
            gpu::wait_for(other_.get(), one_.get());
            add(other_);
            if (waits) gpu::wait_for(one_.get(), other_.get());
            add(one_);
            gpu::wait_for(one_.get(), other_.get());
        });
    }

    const std::string race_ =
        fmt::format("race of {0} and {0}", marked_line(__FILE__, "add"));
    DeviceArray<float> values_{std::vector<float>(32, 1.0f)};
    gpu::Stream one_, other_;  // non-blocking
    std::vector<cudaGraphExec_t> graphs_;
};

TEST_F(ObserveGraphs, ALaunchCountsItsKernels) {
    const cudaGraphExec_t graph = capture_branches(true);
    cuda_on_cpu::observe::start();
    cudaGraphLaunch(graph, one_.get());
    cudaGraphLaunch(graph, one_.get());
    const Report report = cuda_on_cpu::observe::report();
    cuda_on_cpu::observe::stop();
    ASSERT_EQ(report.launches.size(), 4u);
    for (const auto& launch : report.launches)
        EXPECT_EQ(launch.counters.sectors_written, 4u);
}

TEST_F(ObserveGraphs, BranchesAreOrderedByTheirEventsAlone) {
    for (const bool waits : {true, false}) {
        const cudaGraphExec_t graph = capture_branches(waits);
        EXPECT_EQ(races_of([&] { cudaGraphLaunch(graph, one_.get()); }),
                  waits ? "" : race_);
    }
}

TEST_F(ObserveGraphs, LaunchesFollowTheirStreamAndTheLastLaunchOfTheirGraph) {
    const cudaGraphExec_t graph = capture_branches(true);
    const cudaGraphExec_t another = capture(one_, [&] { add(one_); });
    const auto launches = [&](cudaGraphExec_t second, const gpu::Stream& stream) {
        return races_of([&] {
            cudaGraphLaunch(graph, one_.get());
            cudaGraphLaunch(second, stream.get());
        });
    };
    EXPECT_EQ(launches(graph, one_), "");
    EXPECT_EQ(launches(graph, other_), "");
    EXPECT_EQ(launches(another, one_), "");
    EXPECT_EQ(launches(another, other_), race_);
    EXPECT_EQ(races_of([&] {
                  cudaGraphLaunch(graph, one_.get());
                  add(one_);
              }),
              "");
}

}  // namespace
}  // namespace moe::test
