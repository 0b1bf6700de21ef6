/// @file
/// What back-ends that reach one memory space only do with tensors of the other, and how
/// tensors fall into one block of rows for each rank.
#pragma once

#include <vector>

#include "core/transfer.h"
#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// A tensor in the memory space of the transport: itself, or a copy of it there.
class Staged {
  public:
    /// For reading.
    static Staged to_read(const TensorView& original, MemorySpace space) {
        Staged result(original, space);
        if (result.copy_.defined() && original.size_bytes() > 0)
            copy(result.copy_, original);
        return result;
    }
    /// For writing; the last step is write_back().
    static Staged to_fill(const TensorView& original, MemorySpace space) {
        return Staged(original, space);
    }

    const TensorView& view() const { return view_; }
    void write_back() const {
        if (copy_.defined() && original_.size_bytes() > 0) copy(original_, copy_);
    }

  private:
    Staged(const TensorView& original, MemorySpace space)
        : original_(original), view_(original) {
        if (original.space == space) return;
        copy_ = Tensor::empty(original.shape, original.dtype, space);
        view_ = copy_.view();
    }
    TensorView original_, view_;
    Tensor copy_;
};

/// Row blocks of a tensor, by rank.
inline std::vector<TensorView> blocks(const TensorView& tensor, const Splits& rows) {
    std::vector<TensorView> result;
    std::int64_t first = 0;
    for (std::int64_t count : rows) {
        result.push_back(rows_of(tensor, first, count));
        first += count;
    }
    return result;
}

/// Copies one block; blocks may be empty, and then have no address.
inline void copy_block(const TensorView& target, const TensorView& source) {
    if (source.size_bytes() > 0) copy(target, source);
}

}  // namespace moe::distributed
