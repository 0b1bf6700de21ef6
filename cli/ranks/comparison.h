/// @file
/// What `moe compare --ranks` finds out: the layer over ranks in every dispatcher and
/// supplier, held against one rank that has all tokens and all experts, and what went
/// over the links.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/compare/comparison.h"
#include "cli/ranks/routes.h"
#include "cli/ranks/run.h"
#include "cli/ranks/schedule.h"

namespace moe {

/// One value of all ranks together, against the whole layer's.
struct RankValue {
    std::string name;
    Step step = Step::gating;  ///< that makes it
    bool exact = false;        ///< integers
    double error = 0.0, bound = 0.0;
    std::string detail;  ///< where it differs most, if it differs too much
    bool ok() const { return detail.empty(); }
};

/// One supplier in one dispatcher.
struct RankColumn {
    ModuleSpec spec;
    std::string label;
    bool emulated = false;
    std::vector<RankValue> values;
    std::map<Step, Links> sent;   ///< bytes, counted
    std::int64_t host_waits = 0;  ///< per forward, of the rank that waits most
    /// What count_asked() counts; each of the rank that has most. Zeros where all is the
    /// host's work.
    gpu::ThreadCounters asked;
    Schedule schedule;  ///< of what the ranks ask of their devices
    /// Over moe_expert_rank_capacity_factor, by rank.
    std::vector<std::int64_t> dropped_rows;
    std::string bytes_detail;  ///< a link of ⑥ whose bytes the routing map belies
    bool ok = true;

    /// The first step, in the order in which they run, whose values or bytes are wrong.
    /// Not every step's values are compared: one before it may have gone wrong unseen.
    std::optional<Step> first_deviation() const;
    /// Bytes over all links in some steps.
    Links sent_in(const std::vector<Step>& steps) const;
    /// The label, or "--spec" for a mix of suppliers.
    std::string short_label() const;
};

/// One kind of what a column asks of the device.
struct AskedKind {
    const char* title;
    std::int64_t gpu::ThreadCounters::*own, gpu::ThreadCounters::*by_exchanges;
    /// "61", "61 + 3" with those of the exchanges, "·" where all is the host's work.
    std::string in_words(const RankColumn& column) const;
};
inline constexpr std::array kAskedKinds = {
    AskedKind{"launches", &gpu::ThreadCounters::launches,
              &gpu::ThreadCounters::exchange_launches},
    AskedKind{"host waits", &gpu::ThreadCounters::host_waits,
              &gpu::ThreadCounters::exchange_waits}};

struct DispatcherOutcome {
    MoEConfig config;  ///< with its moe_token_dispatcher_type
    Links rows;        ///< token rows on each link in ⑥
    std::vector<RankColumn> columns;
    double rows_per_token = 0.0, balanced_rows_per_token = 0.0;
    std::int64_t megatron_host_waits = 0;
    bool ok = true;
    const std::string& name() const { return config.moe_token_dispatcher_type; }
    /// A line for each rank that dropped rows; with them nothing is what one rank gives.
    std::vector<std::string> dropped_in_words() const;
};

/// Everything that the terminal and the report show.
struct RankComparison {
    std::string model, text_name;
    std::int64_t seq_len = 0, micro_batch = 0;  ///< S and B of all ranks together
    std::int64_t micro_batches = 1;  ///< routes and bytes are those of the first
    bool training = true;
    distributed::ParallelSizes sizes;
    RankTokens tokens;
    Tensor topk_idx;         ///< (T, K) i64 of the one rank that has all, before dropping
    Tensor probs;            ///< (T, E) f64 after dropping, of all ranks together
    Tensor rows_per_expert;  ///< (W, L) i64
    std::vector<DispatcherOutcome> dispatchers;
    std::vector<std::string> left_out;  ///< dispatchers, with the reason
    /// "aux_loss: <why>" where the config has losses that one rank cannot have as well.
    std::string losses_left_out;
    double hit = 0.0, balanced_hit = 0.0;  ///< ranks with different experts, per token
    int whole_runs = 1;                    ///< see WholeRecord
    std::string backend;                   ///< "threads", "MPI", "NCCL"
    bool ok = true;

    std::int64_t num_tokens() const { return seq_len * micro_batch; }
    const MoEConfig& config() const { return dispatchers.front().config; }
    /// "4 threads of one process", "1 process over MPI".
    std::string ranks_in_words() const;
    /// What the one rank has that all are held against.
    std::string whole_in_words() const;
    /// Whether any column does.
    bool uses_device() const;
    /// That a rank's experts get.
    std::int64_t rows_of(int rank) const;
    /// Rows of the rank that gets most over the mean of all ranks: 1 when routing is
    /// balanced, 0 where there are no rows. The step lasts as long as the fullest rank.
    double overload_factor() const;
};

struct RankComparisonRequest {
    std::string model;
    TensorMap parameters;  ///< of one rank with everything; empty: seeded
    std::vector<MoEConfig> configs;  ///< one per dispatcher
    std::vector<std::string> left_out;
    distributed::ParallelSizes sizes;
    TextTokens text;
    std::vector<TextTokens> more_text;  ///< of the micro-batches that follow
    bool training = true;               ///< or an evaluation
    std::vector<ModuleSpec> columns;
    std::vector<Tensor> target_topk_idx = {};  ///< experts to replay, by rank; or empty
    std::uint64_t seed = 0;
    /// When this process is one rank of several; null: ranks are threads of this one.
    distributed::Communicator* world = nullptr;
    std::function<void(const std::string&)> progress = [](const std::string&) {};
};

RankComparison run_rank_comparison(const RankComparisonRequest& request);

/// As wide as the terminal allows.
/// @param report  the folder of the report, which has the rest, or "none"
void print_rank_comparison(const RankComparison& comparison, const std::string& report);

/// Part of the ranks' page: a row for each rank's host and for each of its streams, with
/// what may run beside what. "" where no column asks a device.
std::string timeline_section(const RankComparison& comparison);

/// Like write_report(): the ranks' own page.
std::string write_rank_report(const RankComparison& comparison,
                              const std::string& folder);

}  // namespace moe
