/// @file
/// Megatron's named collectives, each with its conjugate as backward. Source:
/// tensor_parallel/mappings.py. There is no autograd here: a backward calls the function
/// named in the last column by its own hand.
///
/// | function | forward | backward |
/// |---|---|---|
/// | all_to_all | rows by splits | all_to_all, splits swapped |
/// | gather_from_sequence_parallel_region | all-gather, axis 0 | reduce_scatter_to_… |
/// | reduce_scatter_to_sequence_parallel_region | sum, own rows | gather_from_… |
/// | reduce_from_tensor_model_parallel_region | all-reduce | identity |
/// | copy_to_tensor_model_parallel_region | identity | reduce_from_… |
///
/// The last has no function here: forward is the input itself. In a group of one rank
/// each returns its input.
#pragma once

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// @param input (Σ input_splits, …) @return (Σ output_splits, …)
Tensor all_to_all(Communicator& group, const Tensor& input, const Splits& output_splits,
                  const Splits& input_splits);

/// The parts of all ranks in rank order.
/// @param output_split_sizes  rows of each rank's part; empty: all as mine
Tensor gather_from_sequence_parallel_region(Communicator& group, const Tensor& input,
                                            const Splits& output_split_sizes = {});

/// My rows of the sum of everybody's input.
/// @param input_split_sizes  rows that each rank keeps; empty: equal parts
Tensor reduce_scatter_to_sequence_parallel_region(Communicator& group,
                                                  const Tensor& input,
                                                  const Splits& input_split_sizes = {});

/// The same for outputs of experts, whose sum travels in the dtype of the probabilities
/// (fp32 for bf16 rows) and is rounded once. Source: token_dispatcher.py, combine.
Tensor reduce_scatter_in_probs_dtype(Communicator& group, const Tensor& input,
                                     const Splits& input_split_sizes = {});

/// The sum of everybody's input, on every rank.
Tensor reduce_from_tensor_model_parallel_region(Communicator& group, const Tensor& input);

}  // namespace moe::distributed
