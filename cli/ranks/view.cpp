// rank_view.cpp: the comparison over ranks, on a terminal.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "cli/ranks/comparison.h"
#include "cli/words.h"

namespace moe {
namespace {

using distributed::RankGenerator;

constexpr int kMostInMatrix = 8;  // ranks; the report draws any number

void print_trimmed(const std::string& line) {
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

// ------------------------------------------------------------------------ who is where
void print_header(const RankComparison& c) {
    const MoEConfig& config = c.config();
    const distributed::ParallelSizes& s = c.sizes;
    fmt::print("Layer   {}: {}\n", c.model, layer_in_words(config));
    fmt::print("Text    {}: S={} x B={} = {} tokens (bytes)\n", c.text_name, c.seq_len,
               c.micro_batch, c.num_tokens());
    fmt::print(
        "Ranks   {} {}: TP {} x CP {} x DP {}; for experts ETP {} x EP {} x DP {}\n",
        s.world, c.ranks_in_words(), s.tensor, s.context, s.data(), s.expert_tensor,
        s.expert, s.expert_data());
    const auto& columns = c.dispatchers.front().columns;
    for (std::size_t i = 0; i < columns.size(); ++i)
        fmt::print("{}{}{}\n", i == 0 ? "Tiers   " : "        ", columns[i].label,
                   columns[i].emulated ? "  (emulated: kernels ran on this CPU, not on a "
                                         "GPU)"
                                       : "");
    for (const std::string& reason : c.left_out) fmt::print("Without {}\n", reason);
    if (!c.losses_left_out.empty())
        fmt::print("Losses  off here ({}): they look beyond a rank's own tokens\n",
                   c.losses_left_out);
}

/// "s 0-63, b 2": where a rank's tokens lie.
std::string token_range(const RankComparison& c, int rank) {
    const auto& mine = c.tokens.of_rank[rank];
    if (mine.empty()) return "none";
    const auto range = [](std::int64_t first, std::int64_t last) {
        return first == last ? fmt::format("{}", first)
                             : fmt::format("{}-{}", first, last);
    };
    const std::int64_t B = c.micro_batch;
    return fmt::format("{}: s {}, b {}", mine.size(),
                       range(mine.front() / B, mine.back() / B),
                       range(mine.front() % B, mine.back() % B));
}

void print_ranks(const RankComparison& c) {
    const MoEConfig& config = c.config();
    const std::int64_t L = config.num_local_experts();
    const RankGenerator experts = RankGenerator::experts(c.sizes);
    const auto& counts = c.rows_per_expert;
    fmt::print("\nrank  {:<24}{:<16}rows for them\n", "tokens (t = s B + b)", "experts");
    for (int rank = 0; rank < c.sizes.world; ++rank) {
        const std::int64_t first = experts.key(rank, "ep") * L;
        const std::string held = L == 1 ? fmt::format("{}", first)
                                        : fmt::format("{}-{}", first, first + L - 1);
        const std::string shard =
            c.sizes.expert_tensor == 1
                ? ""
                : fmt::format(", shard {}", experts.key(rank, "tp"));
        std::int64_t rows = 0;
        for (std::int64_t l = 0; l < L; ++l)
            rows += counts.data<std::int64_t>()[rank * L + l];
        fmt::print("{:>4}  {:<24}{:<16}{:>13}\n", rank, token_range(c, rank),
                   held + shard, rows);
    }
}

/// "{0 1} {2 3}", or "each alone"; cut where a line would become long.
std::string groups_in_words(const std::vector<std::vector<int>>& groups) {
    constexpr std::size_t kMost = 56;
    if (groups[0].size() == 1) return "each alone";
    std::string words;
    for (std::size_t i = 0; i < groups.size(); ++i) {
        const std::string group = fmt::format("{{{}}}", fmt::join(groups[i], " "));
        if (i > 0 && words.size() + group.size() > kMost)
            return words + fmt::format(" … and {} more", groups.size() - i);
        words += (i == 0 ? "" : " ") + group;
    }
    return words;
}

void print_groups(const RankComparison& c) {
    const RankGenerator dense = RankGenerator::dense(c.sizes);
    const RankGenerator experts = RankGenerator::experts(c.sizes);
    const auto show = [](const char* name, const std::vector<std::vector<int>>& groups,
                         const char* meaning) {
        fmt::print("{:<9}{:<26}  {}\n", name, meaning, groups_in_words(groups));
    };
    fmt::print("\nGroups   ranks that …                who is with whom\n");
    show("tp_ep", experts.get_ranks("tp-ep"), "exchange tokens");
    show("ep", experts.get_ranks("ep"), "have other experts");
    show("expt_tp", experts.get_ranks("tp"), "share the same experts");
    show("expt_dp", experts.get_ranks("dp"), "have the same shards");
    show("tp", dense.get_ranks("tp"), "share a sequence");
    show("cp", dense.get_ranks("cp"), "have parts of a sequence");
    show("dp", dense.get_ranks("dp"), "have other sequences");
}

// ---------------------------------------------------------------------------- equality
std::string cell(const RankValue& value) {
    if (value.exact && !value.ok()) return "integers differ";
    if (value.error == 0.0) return "equal";
    return fmt::format("{:.1e}  {:4.1f} %", value.error,
                       100.0 * value.error / std::max(value.bound, 1e-300));
}

void print_equality(const RankComparison& c) {
    constexpr int kWidth = 22;
    fmt::print("\nAll ranks together against one rank that has {}, in fp64\n",
               c.whole_runs == 1
                   ? "all tokens and all experts"
                   : "all experts and takes each rank's tokens in turn (capacity and "
                     "sinkhorn look at a rank's tokens together)");
    std::string tiers(31, ' '), heads = fmt::format("{:<31}", "value");
    for (const RankColumn& column : c.dispatchers[0].columns) {
        const bool mixed = column.spec.dispatcher != column.spec.experts;
        tiers +=
            fmt::format("  {:<{}}", mixed ? "--spec" : column.spec.experts.tier, kWidth);
        heads += fmt::format("  {:<{}}",
                             to_string(column.spec.experts.dtype) + " error, of bound",
                             kWidth);
    }
    print_trimmed(tiers);
    print_trimmed(heads);
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        fmt::print("{}\n", outcome.name());
        for (std::size_t v = 0; v < outcome.columns[0].values.size(); ++v) {
            std::string line = fmt::format("  {:<29}", outcome.columns[0].values[v].name);
            for (const RankColumn& column : outcome.columns)
                line += fmt::format("  {:<{}}", cell(column.values[v]), kWidth);
            print_trimmed(line);
        }
    }
}

// ----------------------------------------------------------------------------- traffic
/// The column with the narrowest rows, as `moe compare` counts bytes.
const RankColumn& shown_column(const DispatcherOutcome& outcome) {
    return outcome.columns.back();
}

void print_traffic(const RankComparison& c) {
    const RankColumn& shown = shown_column(c.dispatchers[0]);
    const DType dtype = shown.spec.dispatcher.dtype;
    const double T = double(std::max<std::int64_t>(1, c.num_tokens()));
    fmt::print("\nSent to other ranks, counted in {}; a row is H x {} = {}\n",
               shown.label, size_of(dtype),
               bytes_in_words(c.config().hidden_size * std::int64_t(size_of(dtype))));
    fmt::print("{:<11}{:^22}{:^46}host waits, forward\n", "", "rows per token, ⑥",
               "bytes per token");
    fmt::print("{:<11}{:>9}{:>13}", "dispatcher", "counted", "if balanced");
    for (const Step step : kExchangeSteps)
        fmt::print("{:>11}", circled(step) + (is_backward(step) ? " back" : "     "));
    fmt::print("{:>12}{:>12}\n", "counted", "Megatron's");
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        const RankColumn& column = shown_column(outcome);
        fmt::print("{:<11}{:>9.2f}{:>13.2f}", outcome.name(), outcome.rows_per_token,
                   outcome.balanced_rows_per_token);
        for (const Step step : kExchangeSteps)
            fmt::print(
                "{:>11}",
                bytes_in_words(std::int64_t(double(total(column.sent_in({step}))) / T)));
        fmt::print("{:>12}{:>12}\n", column.host_waits, outcome.megatron_host_waits);
    }
    for (const DispatcherOutcome& outcome : c.dispatchers)
        if (outcome.name() == "flex" && c.hit > 0.0)
            fmt::print(
                "A token's {} experts lie on {:.2f} ranks ({:.2f} if balanced): "
                "flex sends {:.2f} times fewer copies than alltoall\n",
                c.config().moe_router_topk, c.hit, c.balanced_hit,
                double(c.config().moe_router_topk) / c.hit);
}

/// Who sends to whom in ⑥, rows and bytes; ⑩ sends the other way.
void print_matrix(const DispatcherOutcome& outcome) {
    const RankColumn& column = shown_column(outcome);
    const Links bytes = column.sent_in({Step::dispatch});
    const Links forward = column.sent_in({Step::dispatch, Step::combine});
    const Links backward =
        column.sent_in({Step::combine_backward, Step::dispatch_backward});
    const int W = int(outcome.rows.size());
    constexpr int kRows = 6, kBytes = 9;
    fmt::print("\n{:<9}   {:<{}}   {:<{}}   {:>9}  {:>9}\n", outcome.name(), "rows, ⑥",
               kRows * W, "bytes, ⑥", kBytes * W, "sent", "sent");
    fmt::print("from \\ to   ");
    for (int to = 0; to < W; ++to) fmt::print("{:>{}}", to, kRows);
    fmt::print("   ");
    for (int to = 0; to < W; ++to) fmt::print("{:>{}}", to, kBytes);
    fmt::print("   {:>9}  {:>9}\n", "forward", "backward");
    for (int from = 0; from < W; ++from) {
        fmt::print("{:>9}   ", from);
        for (int to = 0; to < W; ++to)
            fmt::print("{:>{}}",
                       from == to ? "·" : fmt::to_string(outcome.rows[from][to]), kRows);
        fmt::print("   ");
        for (int to = 0; to < W; ++to)
            fmt::print("{:>{}}", from == to ? "·" : bytes_in_words(bytes[from][to]),
                       kBytes);
        fmt::print("   {:>9}  {:>9}\n", bytes_in_words(sum(forward[from])),
                   bytes_in_words(sum(backward[from])));
    }
}

void print_matrices(const RankComparison& c) {
    if (c.sizes.world > kMostInMatrix)
        fmt::print("\nWho sends to whom: the report draws it for {} ranks\n",
                   c.sizes.world);
    else if (c.sizes.world > 1)
        for (const DispatcherOutcome& outcome : c.dispatchers) print_matrix(outcome);
}

// ----------------------------------------------------------------------------- verdict
void print_verdict(const RankComparison& c) {
    fmt::print("\n");
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        bool values = true, bytes = true;
        for (const RankColumn& column : outcome.columns) {
            for (const RankValue& value : column.values) {
                values = values && value.ok();
                if (!value.ok())
                    fmt::print("✗ {} {} {}: {}\n", outcome.name(), column.label,
                               value.name, value.detail);
            }
            bytes = bytes && column.bytes_detail.empty();
            if (!column.bytes_detail.empty())
                fmt::print("✗ {} {}: {}\n", outcome.name(), column.label,
                           column.bytes_detail);
        }
        if (values)
            fmt::print("✓ {}: {} ranks give what one rank gives, forward and backward\n",
                       outcome.name(), c.sizes.world);
        if (bytes && c.sizes.world > 1)
            fmt::print(
                "✓ {}: the bytes of ⑥ on every link are those that the routing "
                "map asks for\n",
                outcome.name());
    }
    fmt::print("{}\n", c.ok ? "✓ all dispatchers and tiers agree" : "✗ some differ");
}

}  // namespace

void print_rank_comparison(const RankComparison& comparison) {
    print_header(comparison);
    print_ranks(comparison);
    print_groups(comparison);
    print_equality(comparison);
    print_traffic(comparison);
    print_matrices(comparison);
    print_verdict(comparison);
}

}  // namespace moe
