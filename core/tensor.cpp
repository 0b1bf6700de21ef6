#include "core/tensor.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "core/buffer_pool.h"
#include "core/transfer.h"

namespace moe {

namespace {

// Eight bytes each still fit a signed 64-bit count of bytes.
constexpr std::int64_t kMostElements = std::int64_t{1} << 59;

}  // namespace

std::int64_t num_elements(const Shape& shape) {
    std::int64_t count = 1;
    for (std::int64_t size : shape)
        if (__builtin_mul_overflow(count, size, &count) || count > kMostElements)
            reject("shape", to_string(shape), "holds too many elements");
    return count;
}

std::string to_string(const Shape& shape) {
    return fmt::format("({})", fmt::join(shape, ", "));
}

Tensor Tensor::empty(Shape shape, DType dtype, MemorySpace space) {
    for (std::int64_t size : shape) MOE_CHECK(size >= 0);
    Tensor result;
    result.view_ = {nullptr, dtype, std::move(shape), space};
    // One byte at least, so that an empty tensor is still a defined one.
    const std::size_t bytes = std::max<std::size_t>(result.view_.size_bytes(), 1);
    result.owner_ = BufferPool::allocate(bytes, space);
    result.view_.bytes = result.owner_.get();
#ifdef MOE_CHECKED
    memory_functions(space).fill(result.view_.bytes, 0xFF, bytes);
#endif
    return result;
}

Tensor Tensor::zeros(Shape shape, DType dtype, MemorySpace space) {
    Tensor result = empty(std::move(shape), dtype, space);
    memory_functions(space).fill(result.view_.bytes, 0, result.size_bytes());
    return result;
}

Tensor Tensor::borrow(const TensorView& view, std::shared_ptr<void> owner) {
    MOE_CHECK(view.bytes != nullptr || view.numel() == 0);
    // A tensor is defined when it has an owner; nobody owns nothing, and frees nothing.
    static char nobody;
    Tensor result;
    result.owner_ = owner != nullptr ? std::move(owner)
                                     : std::shared_ptr<void>(&nobody, [](void*) {});
    result.view_ = view;
    return result;
}

Tensor Tensor::reshaped(Shape shape) const {
    MOE_CHECK_EQ(num_elements(shape), numel());
    Tensor result = *this;
    result.view_.shape = std::move(shape);
    return result;
}

Tensor Tensor::first(std::int64_t count) const {
    MOE_CHECK(count <= dim(0));
    Tensor result = *this;
    result.view_.shape.at(0) = count;
    return result;
}

Tensor counts_tensor(const std::vector<std::int64_t>& counts) {
    return Tensor::from<std::int32_t>({std::int64_t(counts.size())},
                                      {counts.begin(), counts.end()});
}

Tensor Tensor::clone() const {
    if (!defined()) return {};
    Tensor result = empty(shape(), dtype(), space());
    copy(result.view_, view_);
    return result;
}

}  // namespace moe
