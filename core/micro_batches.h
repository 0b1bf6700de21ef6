/// @file
/// The micro-batches of one optimizer step. A layer runs each of them forward and
/// backward, one after another; what they add up to is here. Source: schedules.py,
/// forward_backward_no_pipelining; distributed_data_parallel.py,
/// _make_backward_post_hook; finalize_model_grads.py.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/moe_layer.h"

namespace moe {

/// RunContext::main_loss_backward_scale of each of N micro-batches, with a loss scale of
/// 1: 1 / N, or with calculate_per_token_loss 1. Left out are, as everywhere here, what
/// Megatron does over ranks: the factor CP of the first, and of the second the division
/// by all valid tokens at the end.
double main_loss_backward_scale(const MoEConfig& config, std::int64_t micro_batches);

/// Adds a micro-batch's gradients to Megatron's main_grad: in order, on the host, in fp32
/// (those of fp64 in fp64). A bf16 gradient is rounded before it is added, as Megatron's
/// is without gradient_accumulation_fusion.
void add_to_main_grads(TensorMap& main_grads, const TensorMap& gradients);

/// Adds a micro-batch's losses to the means that are logged. Source: moe_logging.py.
void add_to_means(Losses& means, const Losses& losses, std::int64_t micro_batches);

/// What an optimizer step moves besides the weights.
struct UpdatedBuffers {
    Tensor expert_bias, qb_beta;  ///< (E) f32, or undefined
};

/// Ends the step in training: moves the buffers by what the micro-batches since the last
/// call have left, and forgets the counts of the global auxiliary loss. Collective.
UpdatedBuffers finish_optimizer_step(MoELayer& layer);

}  // namespace moe
