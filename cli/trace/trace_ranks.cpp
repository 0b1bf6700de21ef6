// trace_ranks.cpp: a dispatch rank by rank, its rows named by token and expert.

#include "cli/trace/trace_ranks.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "cli/commands.h"
#include "cli/compare/closeness.h"
#include "cli/ranks/losses.h"
#include "cli/ranks/rows.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/transfer.h"

namespace moe {
namespace {

using Words = std::vector<std::string>;

/// Values of a row that are shown, so that two rows fit beside each other.
std::int64_t most_values() {
    return terminal_width() >= 96 ? 4 : 3;
}

std::string plural(std::int64_t count, const std::string& thing) {
    return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

/// Words behind a label, wrapped under each other within 98 columns, or the terminal's.
void print_words(const std::string& label, std::size_t indent, const Words& words) {
    const std::size_t most = std::min<std::size_t>(98, terminal_width());
    std::string line = label;
    std::size_t used = std::max(indent, columns_of(label));
    for (const std::string& word : words) {
        const std::size_t width = columns_of(word);
        if (used + 2 + width > most && used > indent) {
            fmt::print("{}\n", line);
            line = std::string(indent, ' ');
            used = indent;
        }
        line += "  " + word;
        used += 2 + width;
    }
    fmt::print("{}\n", line);
}

void print_line(const std::string& line) {
    fmt::print("{}\n", wrapped(line, 2));
}

/// "e0 e1", or "e0-e31" for many.
std::string experts_in_words(const std::vector<std::int64_t>& experts) {
    if (experts.size() > 8)
        return fmt::format("e{}-e{}", experts.front(), experts.back());
    return fmt::format("e{}", fmt::join(experts, " e"));
}

/// The first values of row `row`.
std::string first_values(const std::vector<double>& values, std::int64_t row,
                         std::int64_t width, const char* format) {
    std::string text;
    for (std::int64_t i = 0; i < std::min(width, most_values()); ++i) {
        const double value = values[row * width + i];
        text += fmt::format(fmt::runtime(format), value == 0.0 ? 0.0 : value);
    }
    return text + (width > most_values() ? " …" : "");
}

/// Prints the run, section by section.
class RankPrinter {
  public:
    explicit RankPrinter(const RankTraceRequest& request)
        : run_(request.job, request.sizes, request.seq_len, request.micro_batch),
          spec_(request.job.spec),
          note_(request.note),
          hidden_(to_doubles(request.job.hidden)) {}

    int print() {
        print_header();
        print_choices();
        print_sends();
        print_received();
        print_rows();
        print_returns();
        print_outputs();
        for (const std::string& problem : run_.problems()) fmt::print("✗ {}\n", problem);
        return run_.problems().empty() ? kExitOk : kExitDiffers;
    }

  private:
    bool drops() const { return run_.config().moe_expert_capacity_factor.has_value(); }

    void print_header() const {
        print_line(fmt::format("{} on {}, {} experts, top-{}, {}; {}{}",
                               plural(run_.world() * run_.tokens().per_rank(), "token"),
                               plural(run_.world(), "rank"), run_.config().num_experts(),
                               run_.config().moe_router_topk, run_.dispatcher(),
                               to_string(spec_),
                               spec_.is_emulated() ? ", emulated" : ""));
        fmt::print(
            "t3→e1 is the row of token 3 for expert 1; of each row you see the "
            "first {} values\n",
            std::min(run_.config().hidden_size, most_values()));
        if (const std::string again = recomputed_in_words(run_.config()); !again.empty())
            print_line(again + "; values are shown once, bytes are of both runs");
        if (!note_.empty()) print_line(note_);
    }

    void print_choices() const {
        const std::int64_t H = run_.config().hidden_size;
        fmt::print("\n③ Who holds what: the tokens, and the experts that {}\n",
                   drops() ? "take them (capacity)" : "they chose");
        for (int rank = 0; rank < run_.world(); ++rank) {
            print_line(fmt::format(
                "rank {:<3} has {}{}, exchanges with ranks {}", rank,
                experts_in_words(run_.experts_on(rank)),
                run_.grid().shards() == 1
                    ? ""
                    : fmt::format(" (shard {} of {})", run_.grid().shard_of(rank),
                                  run_.grid().shards()),
                fmt::join(run_.grid().group_of(rank), " ")));
            for (const std::int64_t t : run_.tokens().of_rank[rank]) {
                Words choices;
                for (std::int64_t e = 0; e < run_.config().num_experts(); ++e)
                    if (run_.routed(t, e))
                        choices.push_back(
                            run_.prob(t, e) == 0.0
                                ? fmt::format("e{} padding", e)
                                : fmt::format("e{} {:.4f}", e, run_.prob(t, e)));
                if (choices.empty()) choices.push_back("none: all were dropped");
                print_words(fmt::format("  {:<5}{}   ", fmt::format("t{}", t),
                                        first_values(hidden_, t, H, "{:>7.2f}")),
                            40, choices);
            }
        }
    }

    void print_sends() {
        fmt::print("\n⑥ Dispatch: {}\n",
                   run_.dispatcher() == "allgather"
                       ? "every token to everybody, with its map and probabilities"
                   : run_.dispatcher() == "alltoall"
                       ? fmt::format("a row for every {}, ordered by expert, to its rank",
                                     drops() ? "expert that takes it" : "choice")
                       : "a row for every rank that has any of the token's experts");
        for (int from = 0; from < run_.world(); ++from) {
            std::vector<Row> all;
            for (const int to : run_.grid().group_of(from)) {
                const std::vector<Row> rows = run_.sent_rows(from, to);
                if (run_.dispatcher() != "allgather" || all.empty())
                    all.insert(all.end(), rows.begin(), rows.end());
                print_link(from, to, from == to ? "keeps" : fmt::format("to {}", to),
                           rows);
            }
            run_.require_rows(from, "sent_hidden_states", all);
            print_splits(from);
        }
    }

    /// One line per link; the bytes are those counted.
    void print_link(int rank, int peer, const std::string& direction,
                    const std::vector<Row>& rows) const {
        const auto& sent = run_.record(rank).sent;
        std::string bytes;
        if (direction.starts_with("to ") && sent.contains(Step::dispatch) &&
            sent.at(Step::dispatch).contains(peer))
            bytes = ", " + bytes_in_words(sent.at(Step::dispatch).at(peer));
        Words names;
        for (const Row& row : rows) names.push_back(name_of(row));
        print_words(fmt::format("rank {:<3} {:<7}  {:<16}", rank, direction,
                                plural(std::int64_t(rows.size()), "row") + bytes),
                    33, names);
    }

    void print_splits(int rank) const {
        const TensorMap& values = run_.record(rank).values.at(Step::dispatch);
        for (const char* name : {"input_splits", "output_splits"})
            if (const auto found = values.find(name); found != values.end())
                fmt::print("{:<9}{:<14} {}\n", "", name,
                           fmt::join(to_doubles(found->second), " "));
    }

    void print_received() {
        fmt::print("\n⑥ What each rank received, as it arrived\n");
        for (int rank = 0; rank < run_.world(); ++rank) {
            std::vector<Row> all;
            for (const int from : run_.grid().group_of(rank)) {
                if (run_.dispatcher() == "alltoall" &&
                    run_.grid().shard_of(from) != run_.grid().shard_of(rank))
                    continue;
                const std::vector<Row> rows = run_.sent_rows(from, rank);
                all.insert(all.end(), rows.begin(), rows.end());
                print_link(rank, from,
                           from == rank ? "its own" : fmt::format("from {}", from), rows);
            }
            run_.require_rows(rank, "received_hidden_states", all);
        }
        if (run_.dispatcher() == "alltoall" && run_.grid().shards() > 1)
            fmt::print("         and copies it to the other {} of the same experts\n",
                       run_.grid().shards() == 2 ? "shard" : "shards");
    }

    void print_rows() {
        const std::int64_t width = run_.config().latent_size();
        fmt::print("\n");
        print_line(fmt::format(
            "⑥ In expert order, and ⑨ what the experts make of it{}{}",
            run_.config().moe_latent_size ? ", in ℓ dimensions" : "",
            run_.grid().shards() == 1 ? "" : " (each shard a part of the sum)"));
        for (int rank = 0; rank < run_.world(); ++rank) {
            names_.push_back(run_.name_rows(rank));
            const auto rows =
                to_doubles(run_.value(rank, Step::dispatch, "dispatched_hidden_states"));
            const auto probs =
                to_doubles(run_.value(rank, Step::dispatch, "dispatched_probs"));
            const auto outputs = to_doubles(run_.value(rank, Step::fc2, "expert_output"));
            fmt::print("rank {:<3} {:<10} prob    row{:<{}}  output\n", rank, "", "",
                       7 * most_values());
            for (std::size_t i = 0; i < names_[rank].size(); ++i)
                fmt::print("         {:<10}{:.4f} {}  {}\n",
                           names_[rank][i].token < 0 ? "?" : name_of(names_[rank][i]),
                           probs[i], first_values(rows, i, width, "{:>7.2f}"),
                           first_values(outputs, i, width, "{:>9.4f}"));
        }
    }

    /// Who gets what back from `rank`: the rows of the peer's tokens.
    Words returned(int rank, int peer) const {
        std::map<std::int64_t, Row> sums;
        Words names;
        for (const Row& row : names_[rank]) {
            if (row.token < 0 || run_.owner(row.token) != peer) continue;
            names.push_back(name_of(row));
            sums[row.token].token = row.token;
            sums[row.token].experts.push_back(row.experts[0]);
        }
        if (run_.dispatcher() == "alltoall") return names;
        names.clear();
        for (const std::int64_t t : run_.tokens().of_rank[peer]) {
            if (const auto found = sums.find(t); found != sums.end())
                names.push_back(
                    found->second.experts.size() == 1
                        ? name_of(found->second)
                        : fmt::format("Σ(t{}→e{})", t,
                                      fmt::join(found->second.experts, ",e")));
            else if (run_.dispatcher() == "allgather")
                names.push_back(fmt::format("t{}: 0", t));
        }
        return names;
    }

    void print_returns() const {
        fmt::print("\n⑩ Combine: {}\n",
                   run_.dispatcher() == "alltoall"
                       ? "every row goes back to its token's rank"
                   : run_.dispatcher() == "allgather"
                       ? "what a rank's experts add to every token, zeros included"
                       : "a rank adds up what its experts made of a token, and sends the "
                         "sum");
        for (int rank = 0; rank < run_.world(); ++rank)
            for (const int peer : run_.grid().group_of(rank)) {
                const Words names = returned(rank, peer);
                print_words(
                    fmt::format("rank {:<3} {:<7}  {:<16}", rank,
                                peer == rank ? "keeps" : fmt::format("to {}", peer),
                                plural(std::int64_t(names.size()), "row")),
                    33, names);
            }
    }

    void print_outputs() {
        const std::int64_t H = run_.config().hidden_size;
        const double bound = tier_bound(run_.config(), spec_.coarsest_dtype(), false,
                                        run_.whole().output.dim(0));
        const auto expected = to_doubles(run_.whole().output);
        std::vector<Tensor> parts;
        fmt::print("\n");
        print_line(fmt::format(
            "⑩ The outputs, and those of one rank that has all experts{}",
            run_.whole().runs == 1           ? ""
            : depends_on_rank(run_.config()) ? ", and takes each rank's tokens in turn"
                                             : ", and takes each replica's in turn"));
        for (int rank = 0; rank < run_.world(); ++rank) {
            parts.push_back(run_.record(rank).output);
            const auto outputs = to_doubles(run_.record(rank).output);
            for (std::size_t i = 0; i < run_.tokens().of_rank[rank].size(); ++i) {
                const std::int64_t t = run_.tokens().of_rank[rank][i];
                fmt::print("{:<9}{:<5}{}  {}\n",
                           i == 0 ? fmt::format("rank {}", rank) : "",
                           fmt::format("t{}", t),
                           first_values(outputs, std::int64_t(i), H, "{:>9.4f}"),
                           first_values(expected, t, H, "{:>9.4f}"));
            }
        }
        const Tensor output = join_rows(parts, run_.tokens());
        const Closeness closeness = measure_closeness(output, run_.whole().output);
        if (closeness.within(bound))
            fmt::print("\n✓ the outputs are those of one rank: {}\n",
                       closeness.error == 0.0 ? "bit for bit"
                                              : fmt::format("error {:.1e}, bound {:.0e}",
                                                            closeness.error, bound));
        else
            run_.require(false, "outputs: " + describe_worst(closeness, output,
                                                             run_.whole().output));
    }

    NamedRun run_;
    ModuleSpec spec_;  // as chosen; its router may run in more precision
    std::string note_;
    std::vector<double> hidden_;
    std::vector<std::vector<Row>> names_;  // by rank, in expert order
};

}  // namespace

int trace_ranks(const RankTraceRequest& request) {
    return RankPrinter(request).print();
}

}  // namespace moe
