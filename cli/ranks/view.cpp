// view.cpp: the comparison over ranks, on a terminal.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/ranks/comparison.h"
#include "cli/ranks/traffic_view.h"
#include "cli/step_options.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/transfer.h"

namespace moe {
namespace {

using distributed::RankGenerator;

void print_wrapped(const std::string& line, std::size_t indent) {
    fmt::print("{}\n", wrapped(line, indent));
}

void print_trimmed(const std::string& line) {
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
}

// ------------------------------------------------------------------------ who is where
void print_header(const RankComparison& c) {
    const MoEConfig& config = c.config();
    const distributed::ParallelSizes& s = c.sizes;
    print_wrapped(fmt::format("Layer   {}: {}", c.model, layer_in_words(config)), 8);
    print_wrapped(fmt::format("Text    {}: S={} x B={} = {} tokens (bytes)", c.text_name,
                              c.seq_len, c.micro_batch, c.num_tokens()),
                  8);
    if (c.micro_batches > 1)
        print_wrapped(fmt::format("Step    {} micro-batches, each that many tokens: "
                                  "successive pieces of the text. Rows and bytes are the "
                                  "first's",
                                  c.micro_batches),
                      8);
    if (!c.training) print_wrapped("Mode    " + mode_in_words(false), 8);
    print_wrapped(
        fmt::format(
            "Ranks   {}: TP {} x CP {} x DP {}; for experts ETP {} x EP {} x DP {}",
            c.ranks_in_words(), s.tensor, s.context, s.data(), s.expert_tensor, s.expert,
            s.expert_data()),
        8);
    if (config.moe_expert_capacity_factor)
        print_wrapped(
            "Rows    " +
                kept_rows_in_words(config, to_doubles(c.probs), c.tokens.per_rank()) +
                " of each rank's tokens",
            8);
    const auto& columns = c.dispatchers.front().columns;
    for (std::size_t i = 0; i < columns.size(); ++i)
        fmt::print("{}{}{}\n", i == 0 ? "Tiers   " : "        ", columns[i].label,
                   columns[i].emulated ? "  (emulated: kernels ran on this CPU, not on a "
                                         "GPU)"
                                       : "");
    for (const std::string& reason : c.left_out) print_wrapped("Without " + reason, 8);
    if (!c.losses_left_out.empty())
        print_wrapped("Losses  off here, " + c.losses_left_out, 8);
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
    fmt::print("\nrank  {:<24}{:<16}rows for them\n", "tokens (t = s B + b)", "experts");
    for (int rank = 0; rank < c.sizes.world; ++rank) {
        const std::int64_t first = experts.key(rank, "ep") * L;
        const std::string held = L == 1 ? fmt::format("{}", first)
                                        : fmt::format("{}-{}", first, first + L - 1);
        const std::string shard =
            c.sizes.expert_tensor == 1
                ? ""
                : fmt::format(", shard {}", experts.key(rank, "tp"));
        fmt::print("{:>4}  {:<24}{:<16}{:>13}\n", rank, token_range(c, rank),
                   held + shard, c.rows_of(rank));
    }
    if (c.sizes.world > 1 && c.overload_factor() > 0.0)
        fmt::print("Overload factor {:.2f}: rows of the fullest rank over the mean\n",
                   c.overload_factor());
}

/// "{0 1} {2 3}", or "each alone"; cut where a line would become long.
std::string groups_in_words(const std::vector<std::vector<int>>& groups) {
    const std::size_t most = std::min<std::size_t>(56, terminal_width() - 37);
    if (groups[0].size() == 1) return "each alone";
    std::string words;
    for (std::size_t i = 0; i < groups.size(); ++i) {
        const std::string group = fmt::format("{{{}}}", fmt::join(groups[i], " "));
        if (i > 0 && words.size() + group.size() > most)
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
std::string cell(const RankValue& value, bool with_share) {
    if (value.exact && !value.ok()) return with_share ? "integers differ" : "differ";
    if (value.error == 0.0) return "equal";
    const std::string error = fmt::format("{:.1e}", value.error);
    return with_share ? fmt::format("{}  {:4.1f} %", error,
                                    100.0 * value.error / std::max(value.bound, 1e-300))
                      : error;
}

void print_equality(const RankComparison& c, const std::string& report) {
    print_wrapped(
        fmt::format("\nAll ranks together against one rank that has {}, in fp64",
                    c.whole_in_words()),
        2);
    const std::vector<RankColumn>& columns = c.dispatchers[0].columns;
    std::size_t names = 29;
    for (const DispatcherOutcome& outcome : c.dispatchers)
        for (const RankValue& value : outcome.columns[0].values)
            names = std::max(names, value.name.size());
    const std::size_t before = names + 2;
    const TableParts parts({"errors as shares of their bounds"}, [&](std::size_t gone) {
        return before + columns.size() * (gone == 0 ? 24 : 12);
    });
    const bool shares = parts.has(0);
    const int width = shares ? 22 : 10;
    std::string tiers(before, ' '), heads = fmt::format("{:<{}}", "value", before), last;
    for (const RankColumn& column : columns) {
        const bool mixed = column.spec.dispatcher != column.spec.experts;
        std::string tier = mixed ? "--spec" : column.spec.experts.tier;
        // Over narrow columns a tier's name is short, and reaches over its next ones
        if (!shares) tier = tier.substr(0, tier.find('_'));
        const std::size_t end = before + (&column - columns.data()) * (width + 2) + 2;
        if (shares || tier != last)
            tiers += std::string(end - std::min(end, tiers.size()), ' ') + tier;
        last = tier;
        heads += fmt::format("  {:<{}}",
                             to_string(column.spec.experts.dtype) +
                                 (shares ? " error, of bound" : " error"),
                             width);
    }
    print_trimmed(tiers);
    print_trimmed(heads);
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        fmt::print("{}\n", outcome.name());
        for (std::size_t v = 0; v < outcome.columns[0].values.size(); ++v) {
            std::string line =
                fmt::format("  {:<{}}", outcome.columns[0].values[v].name, names);
            for (const RankColumn& column : outcome.columns)
                line += fmt::format("  {:<{}}", cell(column.values[v], shares), width);
            print_trimmed(line);
        }
    }
    fmt::print("{}", parts.note(report));
}

// ----------------------------------------------------------------------------- verdict
void print_verdict(const RankComparison& c) {
    fmt::print("\n");
    if (c.ok && c.num_tokens() == 0) {
        fmt::print("- no tokens: no dispatcher was compared\n");
        return;
    }
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        for (const std::string& line : outcome.dropped_in_words())
            print_wrapped("✗ " + line, 4);
        bool values = true, bytes = true;
        for (const RankColumn& column : outcome.columns) {
            for (const RankValue& value : column.values) {
                values = values && value.ok();
                if (!value.ok())
                    print_wrapped(fmt::format("✗ {} {} {}: {}", outcome.name(),
                                              column.label, value.name, value.detail),
                                  4);
            }
            bytes = bytes && column.bytes_detail.empty();
            if (!column.bytes_detail.empty())
                print_wrapped(fmt::format("✗ {} {}: {}", outcome.name(), column.label,
                                          column.bytes_detail),
                              4);
        }
        if (values)
            fmt::print("✓ {}: {} what one rank gives, forward and backward\n",
                       outcome.name(),
                       c.sizes.world == 1 ? "1 rank gives"
                                          : fmt::format("{} ranks give", c.sizes.world));
        if (bytes && c.sizes.world > 1)
            print_wrapped("✓ " + outcome.name() +
                              ": the bytes of ⑥ on every link are those that the routing "
                              "map asks for",
                          2);
    }
    for (const DispatcherOutcome& outcome : c.dispatchers)
        for (const RankColumn& column : outcome.columns)
            if (const auto step = column.first_deviation())
                fmt::print("✗ {} {} deviates: first seen at {} {}\n", outcome.name(),
                           column.label, circled(*step), title(*step));
    fmt::print("{}{}\n", c.ok ? "✓ all dispatchers and tiers agree" : "✗ some differ",
               c.losses_left_out.empty() ? "" : ", without the losses that are off here");
}

}  // namespace

void print_rank_comparison(const RankComparison& comparison, const std::string& report) {
    const std::string elsewhere = report == "none" ? "" : report;
    print_header(comparison);
    print_ranks(comparison);
    print_groups(comparison);
    print_equality(comparison, elsewhere);
    print_traffic(comparison);
    print_asked(comparison);
    print_beside(comparison);
    print_matrices(comparison, elsewhere);
    print_verdict(comparison);
}

}  // namespace moe
