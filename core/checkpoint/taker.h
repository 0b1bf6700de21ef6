/// @file
/// Takes the tensors of one block, checks them, and remembers what was taken. Private to
/// layer.cpp and experts.cpp.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/block.h"
#include "core/checkpoint/source.h"

namespace moe::checkpoint {

class Taker {
  public:
    Taker(const Source& source, const Block& block) : source_(source), block_(block) {}

    bool has(Role role) const { return block_.has(role); }
    /// Tensors of a role that the block has.
    const Tensors& part(Role role);
    /// The same; InputError when it has none. @param what  it is called in the error
    const Tensors& required(Role role, const std::string& what);
    /// The one tensor of a required role; InputError for those of single experts.
    const std::string& single(Role role, const std::string& what);

    /// The tensor. InputError for another shape, unless it is `other`, and for a type
    /// that is neither F64, F32 nor BF16.
    Tensor take(const std::string& name, const Shape& shape, const Shape& other = {});
    /// A tensor of integers.
    Tensor take_integers(const std::string& name, const Shape& shape);
    /// An array of our own, for elements that move.
    Tensor make(const Shape& shape, DType dtype);

    /// InputError for a tensor of the block that nobody took.
    void require_nothing_left() const;

    const Source& source() const { return source_; }
    const Block& block() const { return block_; }
    bool copied() const { return copied_; }
    const std::vector<std::string>& names() const { return names_; }

  private:
    const Source& source_;
    const Block& block_;
    bool copied_ = false;
    std::vector<Role> done_;
    std::vector<std::string> names_;
};

/// The bytes of a tensor from an element on.
inline std::byte* bytes_at(const Tensor& tensor, std::int64_t element) {
    return static_cast<std::byte*>(tensor.view().bytes) +
           element * std::int64_t(size_of(tensor.dtype()));
}

}  // namespace moe::checkpoint
