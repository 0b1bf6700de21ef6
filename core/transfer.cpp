#include "core/transfer.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef __unix__
#include <sys/mman.h>
#endif

#include <array>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/past_cache.h"

namespace moe {
namespace {

void* host_allocate(std::size_t bytes) {
    // TUTORIAL: 64 bytes is a cache line and the widest vector register (AVX-512), so no
    // aligned vector load ever straddles two lines.
    constexpr std::size_t kLine = 64, kHugePage = std::size_t(2) << 20;
    const std::size_t alignment = bytes < 2 * kHugePage ? kLine : kHugePage;
    const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // TUTORIAL: of 2 MiB pages the processor remembers where all of a large tensor lies,
    // and the kernel, which copies for other processes, finds it by one look-up.
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return memory;
}

void host_fill(void* bytes, int value, std::size_t count) {
    std::memset(bytes, value, count);
}

void host_copy(void* target, const void* source, std::size_t bytes) {
    copy_for(bytes)(target, source, bytes);
}

void host_transpose(void* target, const void* source, std::int64_t outer,
                    std::int64_t rows, std::int64_t columns, std::int64_t bytes) {
    auto* to = static_cast<std::byte*>(target);
    const auto* from = static_cast<const std::byte*>(source);
    for (std::int64_t first = 0; first < outer * rows * columns; first += rows * columns)
        for (std::int64_t c = 0; c < columns; ++c)
            for (std::int64_t r = 0; r < rows; ++r)
                std::memcpy(to + (first + c * rows + r) * bytes,
                            from + (first + r * columns + c) * bytes, bytes);
}

std::array<MemoryFunctions, 2>& spaces() {
    static std::array<MemoryFunctions, 2> table = {
        MemoryFunctions{host_allocate, std::free, host_fill, host_copy, host_transpose},
        MemoryFunctions{}};
    return table;
}

/// One element as double, and back with a single rounding.
double widen(double value) {
    return value;
}
double widen(float value) {
    return value;
}
double widen(BFloat16 value) {
    return static_cast<float>(value);
}

void narrow(double& target, double value) {
    target = value;
}
void narrow(float& target, double value) {
    target = static_cast<float>(value);
}
void narrow(BFloat16& target, double value) {
    // Rounding twice (fp64 -> fp32 -> bf16) may differ from rounding once: where fp32
    // lands exactly between two bf16 values, step back towards the true value first.
    float nearest = static_cast<float>(value);
    const auto word = std::bit_cast<std::uint32_t>(nearest);
    if ((word & 0xffffu) == 0x8000u && nearest != value && std::isfinite(nearest))
        nearest = std::nextafterf(nearest, value > nearest ? INFINITY : -INFINITY);
    target = BFloat16(nearest);
}

template <typename Target, typename Source>
void cast_elements(Target* target, const Source* source, std::int64_t count) {
    // A layer's weights are worth several threads, a row of tokens is not.
#pragma omp parallel for schedule(static) if (count > (1 << 20))
    for (std::int64_t i = 0; i < count; ++i) narrow(target[i], widen(source[i]));
}

template <typename Target>
void cast_from(Target* target, const TensorView& source) {
    const std::int64_t count = source.numel();
    switch (source.dtype) {
        case DType::f64: return cast_elements(target, source.data<double>(), count);
        case DType::f32: return cast_elements(target, source.data<float>(), count);
        case DType::bf16: return cast_elements(target, source.data<BFloat16>(), count);
        default: MOE_CHECK(is_floating(source.dtype));
    }
}

void cast_on_host(const TensorView& target, const TensorView& source) {
    switch (target.dtype) {
        case DType::f64: return cast_from(target.data<double>(), source);
        case DType::f32: return cast_from(target.data<float>(), source);
        case DType::bf16: return cast_from(target.data<BFloat16>(), source);
        default: MOE_CHECK(is_floating(target.dtype));
    }
}

template <typename T>
std::vector<double> widen_all(const TensorView& source) {
    const T* data = source.data<T>();
    return {data, data + source.numel()};
}

}  // namespace

void register_memory_space(MemorySpace space, const MemoryFunctions& functions) {
    spaces()[static_cast<std::size_t>(space)] = functions;
}

const MemoryFunctions& memory_functions(MemorySpace space) {
    const MemoryFunctions& functions = spaces()[static_cast<std::size_t>(space)];
    MOE_CHECK(functions.allocate != nullptr);
    return functions;
}

void keep_freed_memory() {
#ifdef __GLIBC__
    // TUTORIAL: malloc gets large blocks straight from the kernel and gives them back
    // when they are freed; each of their 4 KiB pages then faults, and is zeroed, at first
    // touch.
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
}

void copy(const TensorView& target, const TensorView& source) {
    MOE_CHECK_EQ(target.size_bytes(), source.size_bytes());
    MOE_CHECK(target.dtype == source.dtype);
    // The space that is not the host knows how to reach the host.
    const MemorySpace mover =
        target.space == MemorySpace::host ? source.space : target.space;
    memory_functions(mover).copy(target.bytes, source.bytes, source.size_bytes());
}

Tensor transpose(const Tensor& source) {
    MOE_CHECK(source.dtype() == DType::u8 && source.shape().size() == 2);
    Tensor result =
        Tensor::empty({source.dim(1), source.dim(0)}, DType::u8, source.space());
    memory_functions(source.space())
        .transpose(result.view().bytes, source.view().bytes, 1, source.dim(0),
                   source.dim(1), 1);
    return result;
}

Tensor swap_blocks(const Tensor& source, std::int64_t outer, std::int64_t rows,
                   std::int64_t columns) {
    Tensor result = Tensor::empty(source.shape(), source.dtype(), source.space());
    const std::int64_t blocks = outer * rows * columns;
    if (blocks == 0) return result;
    MOE_CHECK_EQ(source.numel() % blocks, 0);
    memory_functions(source.space())
        .transpose(result.view().bytes, source.view().bytes, outer, rows, columns,
                   std::int64_t(source.size_bytes()) / blocks);
    return result;
}

Tensor transfer(const TensorView& source, const Placement& target) {
    const bool cast = is_floating(source.dtype) && source.dtype != target.dtype;
    if (!cast) {
        Tensor result = Tensor::empty(source.shape, source.dtype, target.space);
        copy(result, source);
        return result;
    }
    // Casts happen on the host; what lives elsewhere comes by way of it.
    if (source.space != MemorySpace::host) {
        Tensor staged = Tensor::empty(source.shape, source.dtype);
        copy(staged, source);
        return transfer(staged, target);
    }
    Tensor result = Tensor::empty(source.shape, target.dtype);
    cast_on_host(result, source);
    return target.space == MemorySpace::host ? result : transfer(result, target);
}

Tensor transfer(const Tensor& source, const Placement& target) {
    if (!source.defined()) return {};
    const bool same_dtype =
        source.dtype() == target.dtype || !is_floating(source.dtype());
    if (same_dtype && source.space() == target.space) return source;
    return transfer(source.view(), target);
}

std::vector<double> to_doubles(const TensorView& source) {
    if (source.space != MemorySpace::host)
        return to_doubles(transfer(source, {MemorySpace::host, source.dtype}));
    switch (source.dtype) {
        case DType::i64: return widen_all<std::int64_t>(source);
        case DType::i32: return widen_all<std::int32_t>(source);
        case DType::u8: return widen_all<std::uint8_t>(source);
        default: break;
    }
    std::vector<double> values(source.numel());
    cast_from(values.data(), source);
    return values;
}

}  // namespace moe
