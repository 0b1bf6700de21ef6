/// @file
/// Golden cases: inputs, weights and expected values of a whole layer, computed by
/// somebody else's code, as .safetensors files (tests/golden/README.md describes the
/// format).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/steps.h"
#include "core/tensor.h"

namespace moe::distributed {
class Communicator;
}

namespace moe {

/// What one rank is given in a micro-batch.
struct GoldenInput {
    Tensor hidden_states;  ///< (S, B, H); S and B are this rank's and micro-batch's own
    Tensor padding_mask;   ///< (B, S) u8, or undefined
    Tensor grad_output;    ///< (S, B, H), or undefined: then only the forward is checked
    /// (B, S) integers, with moe_router_hash_vocab_size.
    Tensor token_ids = {};
    /// (T, K) integers, or undefined: the router chooses, also under
    /// moe_enable_routing_replay.
    Tensor target_topk_idx = {};
};

/// What one rank is given, and what is expected of it. Of several micro-batches, it is
/// the first itself.
struct GoldenRank : GoldenInput {
    std::vector<GoldenInput> more_micro_batches;  ///< in the same optimizer step
    /// "expect.…" and, of several micro-batches, "micro_batch.<i>.expect.…"; without the
    /// "rank.<r>." of multi-rank files.
    TensorMap expected;

    std::vector<GoldenInput> micro_batches() const;  ///< all of them
    /// Calls `change` with each of them.
    void change_inputs(const std::function<void(GoldenInput&)>& change);
};

/// "micro_batch.<i>.", or "" where there is but one.
std::string micro_batch_prefix(std::int64_t micro_batch, std::int64_t micro_batches);

/// The name of an expectation without that.
std::string without_micro_batch(const std::string& name);

/// One file, read and checked.
struct GoldenCase {
    std::string path, name, source;
    MoEConfig config;
    /// In which the source's layer ran, if the file says so. Where the config has no
    /// moe_router_dtype, the router is of this one in every supplier.
    std::optional<DType> source_dtype;
    std::vector<GoldenRank> ranks;  ///< world_size of them
    bool training = true;           ///< or an evaluation
    TensorMap parameters;           ///< of the whole layer; ranks take their shards
    std::vector<std::string> unknown_tensors;  ///< names nobody here knows
    /// Relative errors of the source's own layer: dtype name, then tensor name.
    std::map<std::string, std::map<std::string, double>> source_errors;
};

/// Reads a file. InputError, naming file and field, for whatever is wrong with it.
GoldenCase load_golden(const std::string& path);

/// Dispatchers that a case can go through.
inline constexpr std::array kDispatcherTypes = {"allgather", "alltoall", "flex"};

/// A case through one dispatcher.
struct DispatcherCase {
    GoldenCase golden;
    /// Expectations that another dispatcher than the file's does not have to meet: it
    /// moves rows in another order.
    std::vector<std::string> left_out;
};

/// The case through the dispatcher of that type. InputError where MoEConfig does not
/// allow it, or where that dispatcher needs as many tokens on every rank.
DispatcherCase through_dispatcher(const GoldenCase& golden, const std::string& type);

/// What a bound on an error follows from.
enum class BoundFrom {
    agreement,     ///< how equality is judged everywhere (README.md)
    source_error,  ///< 1.25 times the error of the source's own layer in that dtype
    rounding,      ///< what rounding alone does to this tensor (rounding.h)
};

/// One expected tensor against what the layer made of it.
struct TensorCheck {
    std::string name;  ///< "expect.output", or "rank 2 expect.output" with many ranks
    bool ok = false;
    /// Relative; bound 0: integers, exactly equal. Where zero is expected, and rounding
    /// leaves something else, both are ‖got‖, not relative.
    double error = 0.0, bound = 0.0;
    BoundFrom bound_from = BoundFrom::agreement;
    std::string detail;        ///< where it differs most; empty when ok
    Step step = Step::gating;  ///< that makes it
};

/// All checks of one case in one supplier, or mix of suppliers.
struct CaseResult {
    std::string case_name;
    ModuleSpec spec;
    bool ok = true;
    std::vector<TensorCheck> checks;
    std::string hint = {};  ///< what may be the matter, if anything was found
    /// The first step, in the order in which they run, of which a check fails: what comes
    /// later may have inherited its error. Nothing when all is well.
    std::optional<Step> first_deviation() const;
};

/// Runs the case, forward and (with grad_output) backward, and checks every expectation.
/// @param world  as for run_golden()
CaseResult verify_golden(const GoldenCase& golden, const ModuleSpec& spec,
                         distributed::Communicator* world = nullptr);

/// Everything that each rank's layer computes on a case, under the names of the
/// expectations: "expect.…". Bad input (e.g. a NaN logit) is an InputError.
/// @param world  of the case's ranks, of which this process is one; null: they run as
///               threads of this process
std::vector<TensorMap> run_golden(const GoldenCase& golden, const ModuleSpec& spec,
                                  distributed::Communicator* world = nullptr);

}  // namespace moe
