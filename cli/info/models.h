/// @file
/// Which models' MoE block this layer is, and what the others have that it lacks.
#pragma once

#include <string>
#include <vector>

#include "cli/markers.h"

namespace moe {

/// One family of models. Judged by its code: the module of transformers (5.24.0), or, for
/// a name with a slash, a file of Megatron-Bridge (067f987d) or another repository.
struct ModelRow {
    std::string family;
    std::string code;     ///< "qwen3_next": models/qwen3_next/modeling_qwen3_next.py
    std::string presets;  ///< names of preset(), separated by ", "; may be empty
    std::string golden;  ///< its block's own values: "models/hf_qwen3_next"; may be empty
    /// Without `golden`: the family whose block its code computes, so that their switches
    /// are the same; empty where something is missing.
    std::string as = {};
    std::string missing = {};  ///< what the layer lacks for it, or for some of its layers
    std::string ours = {};     ///< the field whose value Megatron does not have
};

const std::vector<ModelRow>& model_rows();

/// The tables of docs/models.md: regions "verified", "read", "missing" and "presets", and
/// "captured" and "refused" of cli/info/captured.h. Reads the golden cases: what they are
/// configured as is what stands there.
Regions model_regions();

/// The same for a terminal.
void print_models();

}  // namespace moe
