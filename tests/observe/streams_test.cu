// streams_test.cu: launches are ordered by streams, events and the host's waits, and by
// nothing else.

#include "gpu/stream.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

__global__ void add_kernel(float* values, float amount) {
    values[threadIdx.x] += amount;  // add
}

/// Two launches on one array, in two streams, with something between them.
template <typename Between>
std::string two_launches(cudaStream_t first, cudaStream_t second, Between between) {
    DeviceArray<float> values(std::vector<float>(32, 1.0f));
    return races_of([&] {
        gpu::launch("add_kernel", add_kernel, {1, 32, 0, first}, values.data(), 1.0f);
        between(values.data());
        gpu::launch("add_kernel", add_kernel, {1, 32, 0, second}, values.data(), 2.0f);
    });
}

class ObserveStreams : public testing::Test {
  protected:
    ~ObserveStreams() override { cudaStreamDestroy(ordinary_); }
    cudaStream_t make_ordinary() {
        cudaStreamCreate(&ordinary_);
        return ordinary_;
    }
    const std::string race_ =
        fmt::format("race of {0} and {0}", marked_line(__FILE__, "add"));
    gpu::Stream one_, other_;  // non-blocking
    cudaStream_t ordinary_ = make_ordinary();
};

TEST_F(ObserveStreams, AStreamIsInOrder) {
    const auto nothing = [](float*) {};
    EXPECT_EQ(two_launches(nullptr, nullptr, nothing), "");
    EXPECT_EQ(two_launches(one_.get(), one_.get(), nothing), "");
    EXPECT_EQ(two_launches(one_.get(), other_.get(), nothing), race_);
    const std::string& text = cuda_on_cpu::observe::report().findings.at(0).text;
    EXPECT_TRUE(text.find("an event between the streams") != std::string::npos) << text;
}

TEST_F(ObserveStreams, TheDefaultStreamWaitsForOrdinaryOnes) {
    const auto nothing = [](float*) {};
    EXPECT_EQ(two_launches(nullptr, ordinary_, nothing), "");
    EXPECT_EQ(two_launches(ordinary_, nullptr, nothing), "");
    EXPECT_EQ(two_launches(nullptr, one_.get(), nothing), race_);
    EXPECT_EQ(two_launches(one_.get(), nullptr, nothing), race_);
    EXPECT_EQ(two_launches(one_.get(), ordinary_, nothing), race_);
}

TEST_F(ObserveStreams, EventsOrderThem) {
    EXPECT_EQ(two_launches(one_.get(), other_.get(),
                           [&](float*) { gpu::wait_for(other_.get(), one_.get()); }),
              "");
    EXPECT_EQ(two_launches(one_.get(), other_.get(),
                           [&](float*) { gpu::wait_for(one_.get(), other_.get()); }),
              race_);
    // Recorded too early
    cudaEvent_t event = nullptr;
    cudaEventCreate(&event);
    cudaEventRecord(event, one_.get());
    EXPECT_EQ(two_launches(one_.get(), other_.get(),
                           [&](float*) { cudaStreamWaitEvent(other_.get(), event); }),
              race_);
    cudaEventDestroy(event);
}

TEST_F(ObserveStreams, WaitsOfTheHostOrderThem) {
    EXPECT_EQ(
        two_launches(one_.get(), other_.get(), [](float*) { cudaDeviceSynchronize(); }),
        "");
    EXPECT_EQ(two_launches(one_.get(), other_.get(),
                           [&](float*) { cudaStreamSynchronize(one_.get()); }),
              "");
    EXPECT_EQ(two_launches(one_.get(), other_.get(),
                           [&](float*) { cudaStreamSynchronize(other_.get()); }),
              race_);
}

TEST_F(ObserveStreams, CopiesAndFillsTakePart) {
    DeviceArray<float> values(std::vector<float>(32, 1.0f));
    const auto after = [&](cudaStream_t stream, auto before) {
        return races_of([&] {
            before();
            gpu::launch("add_kernel", add_kernel, {1, 32, 0, stream}, values.data(),
                        1.0f);
        });
    };
    // TUTORIAL: cudaMemset returns before the memory is set; only a copy from the host
    // waits.
    const auto fill = [&] { cudaMemset(values.data(), 0, 128); };
    EXPECT_EQ(after(nullptr, fill), "");
    EXPECT_EQ(after(one_.get(), fill),
              fmt::format("race of 0 and {}", marked_line(__FILE__, "add")));
    const std::vector<float> source(32, 2.0f);
    EXPECT_EQ(after(one_.get(),
                    [&] {
                        cudaMemcpy(values.data(), source.data(), 128,
                                   cudaMemcpyHostToDevice);
                    }),
              "");
    // The host reads what another stream may still be writing
    std::vector<float> target(32);
    EXPECT_NE(races_of([&] {
                  gpu::launch("add_kernel", add_kernel, {1, 32, 0, one_.get()},
                              values.data(), 1.0f);
                  cudaMemcpy(target.data(), values.data(), 128, cudaMemcpyDeviceToHost);
              }),
              "");
}

}  // namespace
}  // namespace moe::test
