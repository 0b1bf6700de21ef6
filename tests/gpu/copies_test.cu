// copies_test.cu: both sides of a copy or a fill lie in an allocation, and where the call
// says. Executor only.

#include <gtest/gtest.h>

#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

testing::AssertionResult Says(const std::string& text, const std::string& part) {
    if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
    return testing::AssertionFailure() << text << " lacks " << part;
}

TEST(Copies, ACopyThatLeavesItsAllocationIsRefused) {
    DeviceArray<int> device(4), other(8);
    std::vector<int> host(8);
    constexpr std::size_t kRow = sizeof(int);
    const auto says = [](cudaError_t error) -> std::string {
        if (error == cudaSuccess) return "";
        EXPECT_EQ(error, cudaErrorInvalidValue);
        EXPECT_EQ(cudaGetLastError(), error);
        return cudaGetErrorString(error);
    };
    // From the fourth int on, where one is left: its bytes, and one more.
    int* last = device.data() + 3;
    for (const std::size_t bytes : {kRow, kRow + 1}) {
        const auto expect = [&](cudaError_t error, const char* side, std::size_t reach,
                                std::size_t left) {
            const std::string text = says(error);
            if (bytes == kRow) {
                EXPECT_EQ(text, "");
                return;
            }
            EXPECT_TRUE(Says(text, std::string(side) + " = 0x"));
            EXPECT_TRUE(Says(text, ": " + std::to_string(reach) +
                                       " bytes reach past its allocation, which has " +
                                       std::to_string(left) + " left"));
        };
        const auto copy = [&](void* target, const void* source, cudaMemcpyKind kind) {
            return cudaMemcpy(target, source, bytes, kind);
        };
        expect(copy(host.data(), last, cudaMemcpyDeviceToHost), "cudaMemcpy: src", 5, 4);
        expect(copy(host.data(), last, cudaMemcpyDefault), "cudaMemcpy: src", 5, 4);
        expect(copy(last, host.data(), cudaMemcpyHostToDevice), "cudaMemcpy: dst", 5, 4);
        expect(copy(last, other.data(), cudaMemcpyDeviceToDevice), "dst", 5, 4);
        expect(copy(other.data(), last, cudaMemcpyDeviceToDevice), "src", 5, 4);
        expect(cudaMemcpyAsync(last, host.data(), bytes, cudaMemcpyHostToDevice),
               "cudaMemcpyAsync: dst", 5, 4);
        expect(cudaMemset(last, 0, bytes), "cudaMemset: devPtr", 5, 4);
        expect(cudaMemsetAsync(last, 0, bytes), "cudaMemsetAsync: devPtr", 5, 4);
        // Every second int from the second on: two rows, or one more that leaves
        const std::size_t rows = bytes == kRow ? 2 : 3;
        expect(cudaMemcpy2D(host.data(), kRow, device.data() + 1, 2 * kRow, kRow, rows,
                            cudaMemcpyDeviceToHost),
               "cudaMemcpy2D: src", 20, 12);
        expect(cudaMemcpy2D(device.data() + 1, 2 * kRow, host.data(), kRow, kRow, rows,
                            cudaMemcpyHostToDevice),
               "cudaMemcpy2D: dst", 20, 12);
    }
    EXPECT_EQ(
        cudaMemcpy2D(host.data(), 8, device.data(), 4, 5, 2, cudaMemcpyDeviceToHost),
        cudaErrorInvalidValue);
    EXPECT_TRUE(
        Says(says(cudaErrorInvalidValue), "width = 5: must be at most both pitches"));
}

TEST(Copies, EitherSideOfACopyMustBeWhereItsKindSays) {
    DeviceArray<int> device(4);
    std::vector<int> host(4);
    const auto says = [](cudaError_t error) -> std::string {
        if (error == cudaSuccess) return "";
        cudaGetLastError();
        return cudaGetErrorString(error);
    };
    const auto copy = [&](void* target, const void* source, cudaMemcpyKind kind) {
        return says(cudaMemcpy(target, source, 16, kind));
    };
    int *h = host.data(), *d = device.data();
    EXPECT_TRUE(
        Says(copy(h, h, cudaMemcpyHostToDevice), "is host memory, must be device"));
    EXPECT_TRUE(Says(copy(d, h, cudaMemcpyDeviceToDevice), "src = "));
    EXPECT_TRUE(
        Says(copy(d, h, cudaMemcpyDeviceToDevice), "is host memory, must be device"));
    EXPECT_TRUE(Says(copy(h, d, cudaMemcpyDeviceToDevice), "dst = "));
    EXPECT_TRUE(
        Says(copy(d, d, cudaMemcpyDeviceToHost), "is device memory, must be host"));
    EXPECT_TRUE(Says(copy(h, d, cudaMemcpyHostToHost), "is device memory, must be host"));
    EXPECT_TRUE(Says(copy(nullptr, d, cudaMemcpyDefault), "must not be null"));
    EXPECT_TRUE(Says(copy(h, nullptr, cudaMemcpyDefault), "must not be null"));
    EXPECT_TRUE(Says(copy(h, d, cudaMemcpyKind(7)), "kind = 7"));
    EXPECT_TRUE(
        Says(says(cudaMemset(h, 0, 16)), "is host memory, must be device memory"));
    EXPECT_TRUE(Says(says(cudaMemset(nullptr, 0, 16)), "must not be null"));
    EXPECT_EQ(copy(h, h, cudaMemcpyHostToHost), "");
    EXPECT_EQ(copy(d, d, cudaMemcpyDefault), "");
}

}  // namespace
}  // namespace moe::test
