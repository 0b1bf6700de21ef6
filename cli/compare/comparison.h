/// @file
/// What `moe compare` measures: the layer on real text, in every supplier, step by step,
/// against fp64; and the golden cases.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/compare/changed_experts.h"
#include "core/components.h"
#include "core/config.h"
#include "core/floors.h"
#include "core/module_spec.h"
#include "core/steps.h"

namespace moe {

/// One step in one supplier.
struct StepOutcome {
    double seconds = 0.0;  ///< of a micro-batch, median over the repeats; 0 if emulated
    int taken_by = 0;      ///< of steps that are one: the number of their first; or 0
    double error = 0.0;    ///< worst relative error of the step's values against fp64
    double bound = 0.0;    ///< what that error may be
    bool integers_equal = true;  ///< maps, counts and choices
    bool beside = false;         ///< some value was computed beside, see Observer
    std::string detail;          ///< where it differs most, if it differs too much
    bool ok() const { return integers_equal && error <= bound; }
};

/// "begins at ② gating".
std::string begins_at(Step step);

/// The step whose values include the gradient of a parameter.
Step step_of_gradient(const std::string& parameter);

/// One supplier (or mix of suppliers) over all steps.
struct ColumnOutcome {
    ModuleSpec spec;
    std::string label;  ///< "reference_cpu:fp32"
    std::array<StepOutcome, kNumSteps> steps;
    Losses losses;           ///< means over the micro-batches
    ChangedExperts changed;  ///< against fp64, whose router is at least as precise
    /// Tokens between whose experts its own rounding decides: see own_choice.h.
    std::int64_t own_choices = 0;
    Tensor topk_idx;  ///< (T, K) integers, before dropping, first micro-batch
    /// Bytes that a forward keeps for its backward, counted, …
    std::int64_t kept_bytes = 0;
    Floor kept;             ///< … and by formula; off where suppliers are mixed
    Floor kept_otherwise;   ///< the same without recompute_modules
    double seconds = 0.0;   ///< forward and backward, median; 0 when emulated
    bool emulated = false;  ///< ran on the CPU executor: no times, they mean nothing
    bool ok = true;
    const StepOutcome& at(Step step) const { return steps[static_cast<int>(step) - 1]; }
    /// "1.23 ms", or "in ⑦" for a step that an earlier one takes along.
    std::string time_of(Step step) const;
    /// The first step, in the order in which they run, whose values are out of bound:
    /// what comes later may have inherited its error. Nothing when all agree.
    std::optional<Step> first_deviation() const;
};

/// The golden cases in one supplier.
struct GoldenOutcome {
    std::string label;
    int passed = 0, total = 0;
    double worst_share = 0.0;  ///< largest error as a share of its bound
    std::string worst_case;    ///< "case: tensor" of that error
    std::vector<std::string> failed;
};

/// The text as the layer's tokens.
struct TextTokens {
    std::string name;                 ///< file it came from
    std::int64_t seq_len = 0;         ///< S
    std::int64_t micro_batch = 0;     ///< B
    std::vector<std::uint8_t> bytes;  ///< (T), token t = s B + b
};

/// Everything that the terminal and the report show.
struct Comparison {
    std::string model;
    std::string weights;  ///< how a checkpoint has them; "" where they are seeded
    MoEConfig config;
    TextTokens text;
    StepSizes sizes;  ///< of the first micro-batch, as all that follows
    std::int64_t micro_batches = 1;
    bool training = true;
    std::vector<ColumnOutcome> columns;  ///< the first is the fp64 reference
    Tensor probs;        ///< (T, E) of the reference, f64 on the host, after dropping
    Tensor routing_map;  ///< (T, E) u8
    Tensor tokens_per_expert;           ///< (E) i32
    Tensor row_token;                   ///< (N) i64, token of each dispatched row
    std::vector<GoldenOutcome> golden;  ///< empty when the golden files are not at hand
    bool ok = true;

    /// The config; in an evaluation without the losses, which are off.
    MoEConfig running_config() const;
    /// The floors of the last column's formats, which is the least precise one.
    Floors floors() const {
        return {running_config(), sizes,
                formats_of(config, columns.back().spec.experts.dtype)};
    }
};

/// Reads a text and cuts it into B sequences of S bytes. S shrinks to what the text
/// holds, and to a multiple of `multiple`, when `may_shrink`. InputError for an
/// unreadable or too short file.
TextTokens read_text(const std::string& path, std::int64_t seq_len,
                     std::int64_t micro_batch, bool may_shrink,
                     std::int64_t multiple = 1);

/// The same for successive pieces of the text, one of each micro-batch.
std::vector<TextTokens> read_micro_batches(const std::string& path, std::int64_t count,
                                           std::int64_t seq_len, std::int64_t micro_batch,
                                           bool may_shrink, std::int64_t multiple = 1);

/// Hidden states (S, B, H) fp32, exactly representable in bf16: each byte with the two
/// before it in its sequence, embedded by fixed seeded tables and weighed 1, 1/2, 1/4.
Tensor embed_text(const TextTokens& text, std::int64_t hidden_size, std::uint64_t seed);

/// The layer in fp64 that a supplier is held against. A router of bf16 chooses other
/// experts than one of fp64: then this one's is of bf16 as well.
ModuleSpec exact_spec(const ModuleSpec& spec);

/// Gradient of the output: seeded N(0, 1), exactly representable in bf16.
Tensor random_gradient(const Shape& shape, std::uint64_t seed,
                       std::int64_t micro_batch = 0);

/// What to run.
struct ComparisonRequest {
    std::string model;
    std::string weights;   ///< how a checkpoint has them
    TensorMap parameters;  ///< a checkpoint's; empty: seeded
    MoEConfig config;
    TextTokens text;
    std::vector<TextTokens> more_text;  ///< of the micro-batches that follow
    bool training = true;               ///< or an evaluation
    std::vector<ModuleSpec> columns;    ///< besides the fp64 reference, which always runs
    Tensor target_topk_idx = {};        ///< (T, K), experts to replay; or undefined
    std::uint64_t seed = 0;
    int repeats = 3;            ///< timed runs after one that is only watched
    std::string golden_folder;  ///< empty: no golden cases
    /// Called with what is being done now.
    std::function<void(const std::string&)> progress = [](const std::string&) {};
};

Comparison run_comparison(const ComparisonRequest& request);

/// Writes `folder`/index.html: one self-contained page, pictures as inline SVG. The
/// folder is made if needed. InputError when it cannot be written; nothing half-written
/// is left. Returns the path of the page.
std::string write_report(const Comparison& comparison, const std::string& folder);

/// Tries to write in the folder, or where it will be made, so that a long run does not
/// end in an error. Nothing stays of it. InputError naming `field`.
void require_writable_folder(const std::string& field, const std::string& folder);

}  // namespace moe
