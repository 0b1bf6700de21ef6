/// @file
/// What came of capturing the MoE layers of transformers' model classes: the table that
/// tests/golden/models/capture_all.py wrote.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// One model class, small and with random weights.
struct CapturedRow {
    std::string code;   ///< "qwen3_next": models/qwen3_next/modeling_qwen3_next.py
    std::string model;  ///< the class that ran
    std::string block;  ///< that of its MoE block, or several
    /// match, differs, refused; failed, not built: the small model did not run
    std::string outcome;
    /// The worst relative error of any tensor, forward and backward, over all tiers that
    /// have the precision: "1.3e-07"; "-" where none ran.
    std::string fp64, fp32, bf16;
    std::string what;  ///< what the layer lacks, where it is refused
};

/// The table, by code. InputError for a file that is none.
std::vector<CapturedRow> captured_rows();

/// Those that match: class, block, errors.
std::string captured_table();

/// Those that are refused, with the reason; and, in a line below, those that did not run.
std::string refused_table();

}  // namespace moe
