// stream_memory_test.cu: copies and stream-ordered memory where streams hold their work
// back. Executor only.

#include <gtest/gtest.h>

#include <cstring>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"
#include "tests/gpu/held_streams.h"

namespace moe::test {
namespace {

using gpu::launch;

__global__ void set_kernel(int* target, int value) {
    *target = value;
}

/// What a copy of `count` ints gives when its source holds 1 at the call and 2 before its
/// stream is demanded; and how far the stream got at the call.
struct CopySeen {
    int value = 0;
    std::string at_the_call;
};
enum class Memory { pageable, pinned, device };
CopySeen copy(Memory from, Memory to, bool asynchronous, std::size_t count = 1) {
    Log log;
    const HeldStreams held;
    const auto make = [count](Memory memory) {
        void* pointer = nullptr;
        if (memory == Memory::pageable) return static_cast<int*>(calloc(count, 4));
        if (memory == Memory::device) {
            cudaMalloc(&pointer, count * 4);
        } else {
            cudaMallocHost(&pointer, count * 4);
            std::memset(pointer, 0, count * 4);
        }
        return static_cast<int*>(pointer);
    };
    int *source = make(from), *target = make(to);
    const auto set = [](int* pointer, Memory memory, int value) {
        if (memory == Memory::device)
            launch("set", set_kernel, {1, 1}, pointer, value);
        else
            *pointer = value;
    };
    CopySeen seen;
    set(source, from, 1);
    log.queue(nullptr, '1');
    if (asynchronous)
        cudaMemcpyAsync(target, source, count * 4, cudaMemcpyDefault, nullptr);
    else
        cudaMemcpy(target, source, count * 4, cudaMemcpyDefault);
    seen.at_the_call = log.text;
    if (to != Memory::device) seen.value = *target;
    if (from != Memory::device) set(source, from, 2);
    cudaDeviceSynchronize();
    if (to == Memory::device) cudaMemcpy(&seen.value, target, 4, cudaMemcpyDeviceToHost);
    for (const auto& [pointer, memory] : {std::pair(source, from), {target, to}})
        if (memory == Memory::pageable)
            free(pointer);
        else
            (memory == Memory::pinned ? cudaFreeHost : cudaFree)(pointer);
    return seen;
}

TEST(StreamMemory, CopiesAreDoneWhenCudaSaysSo) {
    using enum Memory;
    struct Case {
        Memory from, to;
        bool asynchronous;
        int value;
        const char* at_the_call;
    };
    for (const Case& c : {Case{pageable, device, false, 1, ""},  // copied aside
                          {pageable, device, true, 1, ""},
                          {pinned, device, false, 1, "1"},
                          {pinned, device, true, 2, ""},  // read when it is sent
                          {device, device, false, 1, ""},
                          {device, device, true, 1, ""},
                          {device, pageable, false, 1, "1"},
                          {device, pageable, true, 1, "1"},
                          {device, pinned, false, 1, "1"},
                          {device, pinned, true, 0, ""},
                          {pageable, pinned, true, 1, "1"}}) {
        const CopySeen seen = copy(c.from, c.to, c.asynchronous);
        const auto name = [&] {
            return std::to_string(int(c.from)) + " to " + std::to_string(int(c.to)) +
                   (c.asynchronous ? ", asynchronous" : "");
        };
        EXPECT_EQ(seen.at_the_call, c.at_the_call) << name();
        EXPECT_EQ(seen.value, c.value) << name();
    }
    EXPECT_EQ(copy(pageable, device, false, 16384).at_the_call, "");
    EXPECT_EQ(copy(pageable, device, false, 16385).at_the_call, "1") << "over 64 KiB";
    EXPECT_EQ(copy(pageable, device, true, 16385).at_the_call, "");
}

TEST(StreamMemory, MemoryInStreamOrderIsThereFromItsPlaceToItsEnd) {
    const HeldStreams held;
    const OwnStream early, own;
    int* pointer = nullptr;
    ASSERT_EQ(cudaMallocAsync(&pointer, sizeof(int), own), cudaSuccess);
    launch("set", set_kernel, {1, 1, 0, early}, pointer, 3);  // does not wait
    cudaStreamSynchronize(early);
    int host = 0;
    cudaMemcpyAsync(&host, pointer, sizeof host, cudaMemcpyDeviceToHost, own);
    EXPECT_EQ(host, 0x7FFFFFFF) << "not the device's yet";

    launch("set", set_kernel, {1, 1, 0, own}, pointer, 4);
    cudaMemcpyAsync(&host, pointer, sizeof host, cudaMemcpyDeviceToHost, own);
    EXPECT_EQ(host, 4);
    launch("late", set_kernel, {1, 1, 0, early}, pointer, 5);
    ASSERT_EQ(cudaFreeAsync(pointer, own), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(own), cudaSuccess);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they report first
    EXPECT_EQ(cudaStreamSynchronize(early), cudaErrorIllegalAddress);
    const std::string text = cudaGetErrorString(cudaErrorIllegalAddress);
    EXPECT_NE(text.find("freed before"), std::string::npos) << text;
#endif
}

TEST(StreamMemory, AFreeWaitsForTheWholeDevice) {
    Log log;
    const HeldStreams held;
    const OwnStream a;
    log.queue(a, 'a');
    EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
    EXPECT_EQ(log.text, "");
    { const DeviceArray<int> brief(1); }
    EXPECT_EQ(log.text, "a");
}

}  // namespace
}  // namespace moe::test
