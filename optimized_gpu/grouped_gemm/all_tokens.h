/// @file
/// All tokens as a single group of rows, for what is dense.
#pragma once

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

namespace moe::optimized {

/// Makes the group again only when the number of tokens has changed.
class AllTokens {
  public:
    const RowGroups& of(std::int64_t num_tokens) {
        if (num_tokens != num_tokens_) {
            groups_ = make_single_group(num_tokens);
            num_tokens_ = num_tokens;
        }
        return groups_;
    }

  private:
    std::int64_t num_tokens_ = -1;
    RowGroups groups_;
};

}  // namespace moe::optimized
