// memory_faults_test.cu: accesses where no memory is, or somebody else's: what the CPU
// executor says of each, and that the next launch works. Executor only.

#include <memory>

#include "tests/conformance/device_array.h"
#include "tests/gpu/planted.h"

namespace moe::test {
namespace {

using gpu::launch;

__global__ void write_kernel(int* values, int index) {
    if (threadIdx.x == 33) values[index] = 1;
}
struct Smem {
    int values[64];
};
__global__ void too_much_shared_kernel(int* values) {
    values[0] = gpu::shared_memory<Smem>().values[0];
}

TEST(ExecutorMemory, AHostPointerIsRefusedWhereADevicePointerBelongs) {
    std::vector<int> host(4);
    DeviceArray<int> device(4);
    EXPECT_SAYS(fault(write_kernel, {1, 64}, host.data(), 0), "kernel argument 0 = 0x");
    EXPECT_SAYS(fault(write_kernel, {1, 64}, host.data(), 0), "is host memory");
    EXPECT_EQ(cudaMemcpy(host.data(), device.data(), 16, cudaMemcpyHostToDevice),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "cudaMemcpy: dst = ");
    EXPECT_EQ(cudaMemcpy(device.data(), host.data(), 17, cudaMemcpyHostToDevice),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "17 bytes reach past its allocation");
    EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
    cudaGetLastError();
}

TEST(ExecutorMemory, SharedMemoryBeyondTheLaunchIsAnError) {
    DeviceArray<int> values(1);
    EXPECT_SAYS(fault(too_much_shared_kernel, {1, 1, 255}, values.data()),
                "uses 256 bytes of shared memory, but its launch gave 255");
}

#if !defined(CUDA_ON_CPU_ASAN) && !defined(CUDA_ON_CPU_TSAN)  // they report first
__global__ void null_kernel(int* values) {
    if (threadIdx.x == 33) *values = 1;
}
__global__ void overflow_kernel(int* result) {
    volatile char frame[400'000];  // a fiber has 128 KiB
    frame[threadIdx.x] = 1;
    *result = frame[0];
}
__global__ void divide_kernel(int* values, int divisor) {
    values[0] = 7 / divisor;
}

TEST(ExecutorMemory, AFaultNamesKernelBlockAndThreadAndTheNextLaunchWorks) {
    DeviceArray<int> values(std::vector<int>{0});
    EXPECT_SAYS(fault(null_kernel, {2, 64}, nullptr), "illegal access to address");
    EXPECT_SAYS(fault(null_kernel, {2, 64}, nullptr), "thread (33,0,0)");
    EXPECT_SAYS(fault(overflow_kernel, {1, 1}, values.data()), "stack overflow");
    EXPECT_SAYS(fault(divide_kernel, {1, 1}, values.data(), 0), "division by zero");
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
    EXPECT_EQ(values.to_host()[0], 1);
}

__global__ void read_kernel(int* target, const int* values, int index) {
    target[0] = values[index];
}
struct Holder {
    int* values;  // inside a struct the launch does not see a pointer
};
__global__ void write_held_kernel(Holder holder, int index) {
    holder.values[index] = 1;
}

TEST(ExecutorMemory, AnAccessOutsideAnAllocationNamesItAndTheNextLaunchWorks) {
    DeviceArray<int> target(1);
    for (int count : {64, 1024, 4096}) {  // these end where the forbidden pages begin
        DeviceArray<int> values(count);
        const std::string name =
            "a device allocation of " + std::to_string(4 * count) + " bytes";
        struct Case {
            int index;
            std::string place;
        };
        std::vector<Case> cases = {{count, "0 bytes past the end of "},
                                   {count + 299, "1196 bytes past the end of "},
                                   {-1024, "4096 bytes before the start of "}};
        if (count % 1024 == 0) cases.push_back({-1, "4 bytes before the start of "});
        for (const Case& c : cases) {
            for (const std::string& text :
                 {fault(write_kernel, {2, 64}, values.data(), c.index),
                  fault(read_kernel, {1, 1}, target.data(), values.data(), c.index)}) {
                EXPECT_SAYS(text, "illegal access to address 0x");
                EXPECT_SAYS(text, ", " + c.place + name);
                EXPECT_SAYS(text, "memory_faults_test.cu:");
                EXPECT_SAYS(text, "in kernel planted, block (");
            }
            EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), count - 1), "");
        }
    }
}

TEST(ExecutorMemory, AWriteBetweenAnAllocationAndItsGuardIsFoundAfterTheLaunch) {
    DeviceArray<int> target(1), values(75);
    const auto write_at = [&](int index) {
        return fault(write_kernel, {1, 64}, values.data(), index);
    };
    for (const auto& [index, place] : {std::pair(75, "0 bytes past the end of "),
                                       {-1, "4 bytes before the start of "},
                                       {-300, "1200 bytes before the start of "}}) {
        const std::string text = write_at(index);
        EXPECT_SAYS(text, "kernel planted: a write ");
        EXPECT_SAYS(text, place + std::string("a device allocation of 300 bytes"));
        EXPECT_SAYS(text, "`./moe test --asan` finds the line");
        EXPECT_EQ(write_at(74), "");
    }
    EXPECT_SAYS(write_at(75 + 299), "1196 bytes past the end of a device allocation");

    // What is read there is NaN, and not what fresh memory holds.
    EXPECT_EQ(fault(read_kernel, {1, 1}, target.data(), values.data(), 75), "");
    EXPECT_EQ(target.to_host()[0], 0x7FFE7FFE);
}

TEST(ExecutorMemory, AWriteOutsideKernelsIsFoundWhenTheAllocationIsFreed) {
    void* pointer = nullptr;
    ASSERT_EQ(cudaMalloc(&pointer, 300), cudaSuccess);
    static_cast<char*>(pointer)[301] = 1;
    EXPECT_EQ(cudaFree(pointer), cudaErrorIllegalAddress);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorIllegalAddress)),
                "cudaFree: since its last check, a write 1 byte past the end of");
    EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
    DeviceArray<int> values(4);
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
}

TEST(ExecutorMemory, UseAfterFreeNamesTheAllocationThatWas) {
    int* kept = nullptr;
    ASSERT_EQ(cudaMalloc(&kept, 300), cudaSuccess);
    ASSERT_EQ(cudaFree(kept), cudaSuccess);
    DeviceArray<int> values(75);  // of the same size: not in the same place
    const std::string was = "a device allocation of 300 bytes, freed before";

    const std::string written = fault(write_held_kernel, {1, 1}, Holder{kept}, 5);
    EXPECT_SAYS(written, ", 20 bytes into " + was);
    EXPECT_SAYS(written, "in kernel planted, block (0,0,0), thread (0,0,0)");
    EXPECT_SAYS(fault(write_kernel, {1, 64}, kept, 0), "is 0 bytes into " + was);
    EXPECT_EQ(cudaMemcpy(values.data(), kept, 300, cudaMemcpyDefault),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "is 0 bytes into " + was);
    EXPECT_EQ(cudaFree(kept), cudaErrorInvalidValue);
    cudaGetLastError();
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
}

TEST(ExecutorMemory, ThousandsOfAllocationsLive) {
    std::vector<std::unique_ptr<DeviceArray<int>>> arrays;
    for (int i = 0; i < 5000; ++i)
        arrays.push_back(std::make_unique<DeviceArray<int>>(1 + i % 63));
    for (int i : {0, 2345, 4999}) {
        const int count = int(arrays[i]->size());
        EXPECT_EQ(fault(write_kernel, {1, 64}, arrays[i]->data(), count - 1), "");
        const std::string place = " 0 bytes past the end of a device allocation of " +
                                  std::to_string(4 * count) + " bytes";
        EXPECT_SAYS(fault(write_kernel, {1, 64}, arrays[i]->data(), count), place);
        EXPECT_SAYS(fault(write_held_kernel, {1, 1}, Holder{arrays[i]->data()}, count),
                    place);
    }
}
#endif

__global__ void trap_kernel(const int* values) {
    if (threadIdx.x == 5 && values[0] != 0) __trap();
}
TEST(ExecutorMemory, ATrapEndsTheLaunch) {
    DeviceArray<int> values(std::vector<int>{1});
    EXPECT_SAYS(fault(trap_kernel, {1, 32}, values.data()), "__trap(), at ");
    EXPECT_SAYS(fault(trap_kernel, {1, 32}, values.data()), "thread (5,0,0)");
}

}  // namespace
}  // namespace moe::test
