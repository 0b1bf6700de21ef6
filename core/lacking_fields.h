/// @file
/// Names in a config that are no fields of MoEConfig: fields of Megatron's that it lacks,
/// and other names of fields that it has.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace moe {

/// What one of Megatron's fields that MoEConfig lacks would do, what stands in for it, or
/// what Megatron calls what another program, or Megatron's own command line, calls by
/// this name; "" for other names.
/// Source: transformer_config.py, model_parallel_config.py and arguments.py of
/// Megatron-Core 0.19.2; config.json of models on Hugging Face.
const std::string& why_not_here(const std::string& field);

/// Whether MoEConfig lacks this field of Megatron's and the value is its default, or
/// null: then the layer is the same without it.
bool is_off(const std::string& field, const nlohmann::json& value);

/// Whether MoEConfig lacks this field of Megatron's and the layer gives other values with
/// it, as distinct from computing the same otherwise.
bool changes_values(const std::string& field);

}  // namespace moe
