// tensor.cu: device memory for core/transfer, and copies of whole vectors.

#include "gpu/tensor.h"

#include <map>
#include <mutex>

#include "core/transfer.h"
#include "gpu/check.h"
#include "gpu/counters.h"
#include "gpu/launch.h"

namespace moe::gpu {
namespace {

/// Sizes of what allocate() gave, by address, for the counters.
class Allocations {
  public:
    void add(void* pointer, std::size_t bytes) {
        const std::lock_guard lock(mutex_);
        sizes_[static_cast<std::byte*>(pointer)] = bytes;
    }
    void remove(void* pointer) {
        const std::lock_guard lock(mutex_);
        sizes_.erase(static_cast<std::byte*>(pointer));
    }
    /// True for an address inside any of them.
    bool contains(const void* address) {
        const std::lock_guard lock(mutex_);
        auto* byte = static_cast<std::byte*>(const_cast<void*>(address));
        auto after = sizes_.upper_bound(byte);
        return after != sizes_.begin() && byte < (--after)->first + after->second;
    }

  private:
    std::mutex mutex_;
    std::map<std::byte*, std::size_t> sizes_;
};

Allocations& allocations() {
    static auto* all = new Allocations;  // tensors may outlive any static object
    return *all;
}

void* allocate(std::size_t bytes) {
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, bytes), fmt::format("cudaMalloc of {} bytes", bytes));
    allocations().add(pointer, bytes);
    return pointer;
}

void release(void* pointer) {
    allocations().remove(pointer);
    // An error here is an earlier kernel's, which somebody else reports.
    cudaFree(pointer);
}

void fill(void* pointer, int value, std::size_t count) {
    check(cudaMemsetAsync(pointer, value, count, current_stream()), "cudaMemsetAsync");
}

void copy(void* target, const void* source, std::size_t bytes) {
    // TUTORIAL: with unified addressing the runtime tells device pointers from host ones
    // by their value, so a copy need not say its direction.
    check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, current_stream()),
          "cudaMemcpyAsync");
    if (allocations().contains(target) && allocations().contains(source)) return;
    count_host_wait(current_stream());
    check(cudaStreamSynchronize(current_stream()), "cudaMemcpyAsync");
}

/// One thread per word of the target; an element is `words` of them.
template <typename Word>
__global__ void transpose_kernel(Word* target, const Word* source, std::int64_t outer,
                                 std::int64_t rows, std::int64_t columns,
                                 std::int64_t words) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= outer * rows * columns * words) return;
    const std::int64_t word = i % words, element = i / words;
    const std::int64_t row = element % rows, column = element / rows % columns,
                       first = element / (rows * columns) * rows;
    target[i] = source[((first + row) * columns + column) * words + word];
}

template <typename Word>
void transpose_words(void* target, const void* source, std::int64_t outer,
                     std::int64_t rows, std::int64_t columns, std::int64_t bytes) {
    const std::int64_t words = bytes / std::int64_t(sizeof(Word));
    launch("transpose_kernel", transpose_kernel<Word>,
           one_thread_per(outer * rows * columns * words), static_cast<Word*>(target),
           static_cast<const Word*>(source), outer, rows, columns, words);
}

void transpose(void* target, const void* source, std::int64_t outer, std::int64_t rows,
               std::int64_t columns, std::int64_t bytes) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(source) % sizeof(uint4) == 0;
    if (aligned && bytes % std::int64_t(sizeof(uint4)) == 0)
        transpose_words<uint4>(target, source, outer, rows, columns, bytes);
    else
        transpose_words<std::uint8_t>(target, source, outer, rows, columns, bytes);
}

}  // namespace

void register_device_memory() {
    register_memory_space(MemorySpace::device,
                          {allocate, release, fill, copy, transpose, count_bytes});
}

bool is_emulated() {
#ifdef __CUDACC__
    return false;
#else
    return true;
#endif
}

std::string missing_device() {
    static const std::string missing = []() -> std::string {
        int count = 0;
        const cudaError_t status = cudaGetDeviceCount(&count);
        if (status == cudaSuccess && count > 0) return "";
        cudaGetLastError();  // told here
        return fmt::format(
            "needs an NVIDIA GPU and its driver (cudaGetDeviceCount: {}); a build "
            "without MOE_CUDA emulates one",
            status == cudaSuccess ? "no device" : cudaGetErrorString(status));
    }();
    return missing;
}

std::string device_name() {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "device");
    return properties.name;
}

template <typename T>
Tensor to_device(const std::vector<T>& values) {
    const Tensor host = Tensor::from({std::int64_t(values.size())}, values);
    return transfer(host, {MemorySpace::device, host.dtype()});
}

template <typename T>
std::vector<T> to_host(const Tensor& tensor) {
    const Tensor host = transfer(tensor, {MemorySpace::host, tensor.dtype()});
    const T* data = host.data<T>();
    return {data, data + host.numel()};
}

#define INSTANTIATE(T)                                   \
    template Tensor to_device<T>(const std::vector<T>&); \
    template std::vector<T> to_host<T>(const Tensor&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(std::int32_t)
INSTANTIATE(std::int64_t)
INSTANTIATE(std::uint8_t)
#undef INSTANTIATE

}  // namespace moe::gpu
