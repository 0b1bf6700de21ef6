/// @file
/// All tokens as a single group of rows, for what is dense.
#pragma once

#include <cstdint>
#include <map>

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

namespace moe::optimized {

/// Makes a group for each number of tokens that comes, two numbers on the device, and
/// keeps it: a CUDA graph reads it where it was at the capture.
class AllTokens {
  public:
    const RowGroups& of(std::int64_t num_tokens) {
        RowGroups& group = groups_[num_tokens];
        if (!group.offsets.defined()) group = make_single_group(num_tokens);
        return group;
    }

  private:
    std::map<std::int64_t, RowGroups> groups_;  // by number of tokens
};

}  // namespace moe::optimized
