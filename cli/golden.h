/// @file
/// Golden cases: inputs, weights and expected values of a whole layer, computed by
/// somebody else's code, as .safetensors files (tests/golden/README.md describes the
/// format).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tensor.h"

namespace moe {

/// One file, read and checked.
struct GoldenCase {
    std::string path, name, source;
    MoEConfig config;
    Tensor hidden_states;  ///< (S, B, H)
    Tensor padding_mask;   ///< (B, S) u8, or undefined
    Tensor grad_output;    ///< (S, B, H), or undefined: then only the forward is checked
    TensorMap parameters;
    TensorMap expected;                        ///< "expect.…" as named in the file
    std::vector<std::string> unknown_tensors;  ///< names nobody here knows
    /// Relative errors of the source's own layer: dtype name, then tensor name.
    std::map<std::string, std::map<std::string, double>> source_errors;
};

/// Reads a file. InputError, naming file and field, for whatever is wrong with it.
GoldenCase load_golden(const std::string& path);

/// One expected tensor against what the layer made of it.
struct TensorCheck {
    std::string name;
    bool ok = false;
    double error = 0.0, bound = 0.0;  ///< bound 0: integers, exactly equal
    std::string detail;               ///< where it differs most; empty when ok
};

/// All checks of one case in one supplier, or mix of suppliers.
struct CaseResult {
    std::string case_name;
    ModuleSpec spec;
    bool ok = true;
    std::vector<TensorCheck> checks;
};

/// Runs the case, forward and (with grad_output) backward, and checks every expectation.
CaseResult verify_golden(const GoldenCase& golden, const ModuleSpec& spec);

/// Everything a layer computes on a case, under the names of the expectations:
/// "expect.…". Bad input (e.g. a NaN logit) is an InputError.
TensorMap run_golden(const GoldenCase& golden, const ModuleSpec& spec);

}  // namespace moe
