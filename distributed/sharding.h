/// @file
/// A rank's share of the layer's parameters and tokens.
#pragma once

#include "core/config.h"
#include "core/tensor.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

/// The rank's shard of global parameters (core/parameters.h lists the local shapes):
/// experts [ep * L, (ep + 1) * L); of every expert, rows of FC1 (its share of the gate
/// rows, then of the up rows) and columns of FC2 by expt_tp rank; shared experts by tp
/// rank; router and gate whole. Source: experts.py, shared_experts.py, layers.py.
/// @param global  tensors on the host; names that are not parameters are left out
TensorMap shard_parameters(const MoEConfig& config, const TensorMap& global,
                           const ProcessGroups& groups);

/// One global parameter's shard; see shard_parameters(). Gradients are cut alike.
Tensor shard_parameter(const MoEConfig& config, const std::string& name,
                       const Tensor& global, const ProcessGroups& groups);

/// A config of the same layer on one rank: all parallel sizes 1, sequence parallelism
/// off, AlltoAll. For holding ranks against the whole.
MoEConfig single_rank_config(const MoEConfig& of_ranks);

}  // namespace moe::distributed
