/// @file
/// Tensor (owns its memory) and TensorView (does not): typed, shaped, row-major and
/// dense, and aware of the memory space they live in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace moe {

/// Where bytes live. A tier that works elsewhere than on the host registers its space
/// with register_memory_space() (core/transfer.h).
enum class MemorySpace : std::uint8_t { host, device };

/// What a component works in: memory space and floating-point type.
struct Placement {
    MemorySpace space = MemorySpace::host;
    DType dtype = DType::f32;
    bool operator==(const Placement&) const = default;
};

/// Sizes of the axes, slowest first. Empty for a scalar.
using Shape = std::vector<std::int64_t>;

/// Product of the sizes; 1 for a scalar. InputError when it is over 2^59.
std::int64_t num_elements(const Shape& shape);

/// "(3, 4)".
std::string to_string(const Shape& shape);

/// A dense row-major array that somebody else owns: a mapped file, one expert's slice, a
/// caller's buffer. Copying it copies the pointer.
struct TensorView {
    void* bytes = nullptr;
    DType dtype = DType::f32;
    Shape shape;
    MemorySpace space = MemorySpace::host;

    std::int64_t dim(int axis) const { return shape.at(axis); }
    std::int64_t numel() const { return num_elements(shape); }
    std::size_t size_bytes() const { return numel() * size_of(dtype); }

    /// Typed pointer to the first element. Throws InternalError when T is not the dtype.
    template <typename T>
    T* data() const {
        MOE_CHECK(dtype == dtype_of<T>);
        return static_cast<T*>(bytes);
    }
};

/// A dense row-major array with shared ownership: copies are cheap and refer to the same
/// memory, as in PyTorch; clone() makes a second array.
class Tensor {
  public:
    /// The undefined tensor: "not given". defined() is false, every size is 0.
    Tensor() = default;

    /// Uninitialised memory; filled with 0xFF (NaN, or -1) in checked builds, so that an
    /// element nobody wrote shows up.
    static Tensor empty(Shape shape, DType dtype, MemorySpace space = MemorySpace::host);
    static Tensor zeros(Shape shape, DType dtype, MemorySpace space = MemorySpace::host);
    /// A copy of `values` on the host; its size must match the shape.
    template <typename T>
    static Tensor from(Shape shape, const std::vector<T>& values);
    /// Somebody else's memory, without a copy: what they write there later, this tensor
    /// has. It stays in place for as long as this tensor or one that shares its memory
    /// lives: `owner` is let go with the last of them; without one that is the caller's
    /// promise. InternalError for a null pointer, unless the view has no elements.
    static Tensor borrow(const TensorView& view, std::shared_ptr<void> owner = nullptr);

    bool defined() const { return owner_ != nullptr; }
    const TensorView& view() const { return view_; }
    operator const TensorView&() const { return view_; }

    const Shape& shape() const { return view_.shape; }
    std::int64_t dim(int axis) const { return view_.dim(axis); }
    std::int64_t numel() const { return defined() ? view_.numel() : 0; }
    std::size_t size_bytes() const { return defined() ? view_.size_bytes() : 0; }
    DType dtype() const { return view_.dtype; }
    MemorySpace space() const { return view_.space; }

    template <typename T>
    T* data() {
        return view_.data<T>();
    }
    template <typename T>
    const T* data() const {
        return view_.data<T>();
    }

    /// The same memory under another shape with equally many elements.
    Tensor reshaped(Shape shape) const;
    /// The first `count` of axis 0, in the same memory.
    Tensor first(std::int64_t count) const;
    /// A second array with the same contents, in the same memory space.
    Tensor clone() const;

  private:
    std::shared_ptr<void> owner_;
    TensorView view_;
};

/// Counts of rows as components hand them on: (size) i32 on the host.
Tensor counts_tensor(const std::vector<std::int64_t>& counts);

/// Tensors by name, e.g. parameters ("router.weight") or their gradients.
using TensorMap = std::map<std::string, Tensor>;

template <typename T>
Tensor Tensor::from(Shape shape, const std::vector<T>& values) {
    Tensor result = empty(std::move(shape), dtype_of<T>);
    MOE_CHECK_EQ(result.numel(), static_cast<std::int64_t>(values.size()));
    std::copy(values.begin(), values.end(), result.data<T>());
    return result;
}

}  // namespace moe
