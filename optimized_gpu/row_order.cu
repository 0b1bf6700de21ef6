// row_order.cu: rows in the order of a row map, and back.

#include "optimized_gpu/row_order.h"

#include "gpu/tensor.h"
#include "optimized_gpu/multihot.h"

namespace moe::optimized {

Tensor MappedRows::row_token() const {
    return map_.row_token.first(gpu::to_host<std::int32_t>(map_.offsets).back());
}

Rows MappedRows::permute(const Tensor& source) const {
    const auto copy = [source, map = map_] { return optimized::permute(source, map); };
    Rows rows = is_sorted() ? Rows(source)
                : fused_    ? Rows(source, map_.row_token, copy)
                            : Rows(copy());
    rows.offsets = map_.offsets;
    return rows;
}

Tensor MappedRows::unpermute(const Tensor& rows, const Tensor& addend) const {
    return is_sorted() ? rows : optimized::combine(rows, map_, addend);
}

Tensor MappedRows::permute_probs_backward(const Tensor& drow_probs) const {
    if (is_sorted()) return drow_probs;
    const Tensor dprobs = optimized::permute_probs_backward(drow_probs, map_);
    return arrived_ ? dprobs.reshaped({dprobs.numel()}) : dprobs;
}

RowMap map_of_choices(const Tensor& routing, const Tensor& probs,
                      const MoEConfig& config) {
    const int padding = config.moe_router_padding_for_quantization
                            ? int(get_align_size_for_quantization(config))
                            : 1;
    if (routing.dtype() == DType::i32)
        return make_row_map(routing, int(config.num_experts()), padding, probs);
    if (config.moe_pad_expert_input_to_capacity)
        return make_row_map_of_dense(routing, get_capacity(config, routing.dim(0)),
                                     padding, probs);
    // Another tier's router: rather than room for every expert of every token, a wait.
    RowMap map = make_row_map_of_dense(routing, padding, probs);
    map.capacity = gpu::to_host<std::int32_t>(map.offsets).back();
    for (Tensor* rows : {&map.row_token, &map.row_slot, &map.row_probs})
        *rows = rows->first(map.capacity);
    return map;
}

}  // namespace moe::optimized
