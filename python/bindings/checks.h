/// @file
/// What is asked of arguments before a component, which trusts them, gets them.
#pragma once

#include <string>

#include "core/config.h"
#include "core/tensor.h"

namespace moe::python {

/// InputError, naming `field`, unless the tensor is floating-point of that shape.
void check_floating(const std::string& field, const Tensor& tensor, const Shape& shape);

/// InputError unless it has two axes, the second of that size.
void check_rows(const std::string& field, const Tensor& tensor, std::int64_t width);

/// InputError unless it is (T, E) u8 or bool, with at most K experts of each token.
void check_routing_map(const MoEConfig& config, const Tensor& map,
                       std::int64_t num_tokens);

/// (L) int32 or int64 counts, as int32 on the host. InputError unless they are not
/// negative and sum to `num_rows`.
Tensor read_counts(const MoEConfig& config, const Tensor& counts, std::int64_t num_rows);

/// Those of one component, "router." or "experts.", checked as check_parameters() does
/// for a layer, with gates before ups.
TensorMap component_parameters(const MoEConfig& config, const TensorMap& given,
                               const std::string& prefix);

}  // namespace moe::python
