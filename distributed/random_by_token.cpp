#include "distributed/random_by_token.h"

#include "core/transfer.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

RandomByToken::RandomByToken(std::int64_t width, const GroupsPtr& groups,
                             Placement placement)
    : width_(width), groups_(groups), placement_(placement) {}

const Tensor& RandomByToken::of(std::int64_t seq_len, std::int64_t micro_batch) {
    Tensor& drawn = drawn_[{seq_len, micro_batch}];
    if (drawn.defined()) return drawn;
    // The sequence is cut over TP and CP, the batch over DP.
    const std::int64_t first_s = groups_ ? groups_->tp_cp->rank() * seq_len : 0;
    const std::int64_t first_b = groups_ ? groups_->dp->rank() * micro_batch : 0;
    Tensor numbers = Tensor::empty({seq_len * micro_batch, width_}, DType::f32);
    float* number = numbers.data<float>();
    for (std::int64_t s = first_s; s < first_s + seq_len; ++s)
        for (std::int64_t b = first_b; b < first_b + micro_batch; ++b)
            for (std::int64_t i = 0; i < width_; ++i) *number++ = float(draw(s, b, i));
    return drawn = transfer(numbers, placement_);
}

}  // namespace moe::distributed
