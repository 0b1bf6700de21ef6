// trace_ranks.cpp: a dispatch rank by rank, its rows named by token and expert.

#include "cli/trace_ranks.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "cli/closeness.h"
#include "cli/commands.h"
#include "cli/rank_routes.h"
#include "cli/words.h"
#include "core/transfer.h"

namespace moe {
namespace {

using Words = std::vector<std::string>;

constexpr std::int64_t kMostValues = 4;

/// A row on its way: a token with those of its experts that it is meant for.
struct Row {
    std::int64_t token;
    std::vector<std::int64_t> experts;
};

/// "t3→e1", "t3→e0,e1", or "t3" for everybody.
std::string name_of(const Row& row) {
    return row.experts.empty()
               ? fmt::format("t{}", row.token)
               : fmt::format("t{}→e{}", row.token, fmt::join(row.experts, ",e"));
}

std::string plural(std::int64_t count, const std::string& thing) {
    return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

/// Words behind a label, wrapped under each other within 100 columns.
void print_words(const std::string& label, std::size_t indent, const Words& words) {
    constexpr std::size_t kWidth = 98;
    std::string line = label;
    std::size_t used = indent;
    for (const std::string& word : words) {
        // "→" and "Σ" take several bytes and one column
        const auto width = std::size_t(std::count_if(
            word.begin(), word.end(), [](char c) { return (c & 0xC0) != 0x80; }));
        if (used + 2 + width > kWidth && used > indent) {
            fmt::print("{}\n", line);
            line = std::string(indent, ' ');
            used = indent;
        }
        line += "  " + word;
        used += 2 + width;
    }
    fmt::print("{}\n", line);
}

/// The first values of row `row`.
std::string first_values(const std::vector<double>& values, std::int64_t row,
                         std::int64_t width, const char* format) {
    std::string text;
    for (std::int64_t i = 0; i < std::min(width, kMostValues); ++i) {
        const double value = values[row * width + i];
        text += fmt::format(fmt::runtime(format), value == 0.0 ? 0.0 : value);
    }
    return text + (width > kMostValues ? " …" : "");
}

/// The run, the whole, and the names of all rows.
class Tracer {
  public:
    explicit Tracer(const RankTraceRequest& request)
        : config_(request.job.config),
          spec_(request.job.spec),
          grid_(config_, request.sizes),
          tokens_(split_tokens(request.sizes, request.seq_len, request.micro_batch)),
          hidden_(to_doubles(request.job.hidden)) {
        // t0, t1, … on rank 0, and so on
        std::int64_t next = 0;
        for (auto& mine : tokens_.of_rank)
            for (std::int64_t& token : mine) token = next++;
        records_ = run_on_ranks(request.job, tokens_);
        whole_ = run_whole(request.job, tokens_);
        spec_.raise_router_dtype(config_);
        for (const RankRecord& record : records_)
            probs_.push_back(
                to_doubles(record.values.at(Step::token_dropping).at("probs")));
    }

    int print() {
        print_header();
        print_choices();
        print_sends();
        print_received();
        print_rows();
        print_returns();
        print_outputs();
        for (const std::string& problem : problems_) fmt::print("✗ {}\n", problem);
        return problems_.empty() ? kExitOk : kExitDiffers;
    }

  private:
    // ------------------------------------------------------------------- what is known
    int world() const { return int(records_.size()); }
    std::int64_t owner(std::int64_t token) const { return token / tokens_.per_rank(); }
    const std::string& dispatcher() const { return config_.moe_token_dispatcher_type; }

    const Tensor& value(int rank, Step step, const char* name) const {
        return records_[rank].values.at(step).at(name);
    }
    double prob(std::int64_t token, std::int64_t expert) const {
        const std::int64_t local = token % tokens_.per_rank();
        return probs_[owner(token)][local * config_.num_experts() + expert];
    }
    /// As this token's rank has it in its own map.
    bool routed(std::int64_t token, std::int64_t expert) const {
        const std::int64_t local = token % tokens_.per_rank();
        return value(int(owner(token)), Step::token_dropping, "routing_map")
                   .data<std::uint8_t>()[local * config_.num_experts() + expert] != 0;
    }
    std::vector<std::int64_t> experts_on(int rank) const {
        std::vector<std::int64_t> experts(config_.num_local_experts());
        std::iota(experts.begin(), experts.end(), grid_.first_expert(rank));
        return experts;
    }

    /// The rows that `from` sends `to`, in order. AlltoAll sends to the ranks of ep,
    /// which have my shard of other experts.
    std::vector<Row> sent_rows(int from, int to) const {
        std::vector<Row> rows;
        const auto& mine = tokens_.of_rank[from];
        if (dispatcher() == "allgather") {
            for (const std::int64_t t : mine) rows.push_back({t, {}});
        } else if (dispatcher() == "alltoall") {
            if (grid_.shard_of(from) != grid_.shard_of(to)) return {};
            for (const std::int64_t e : experts_on(to))
                for (const std::int64_t t : mine)
                    if (routed(t, e)) rows.push_back({t, {e}});
        } else {
            for (const std::int64_t t : mine) {
                Row row{t, {}};
                for (const std::int64_t e : experts_on(to))
                    if (routed(t, e)) row.experts.push_back(e);
                if (!row.experts.empty()) rows.push_back(row);
            }
        }
        return rows;
    }

    /// The rows of `rank` by expert, named by what they hold: the token with that
    /// expert in its map whose hidden state and probability they are.
    std::vector<Row> name_rows(int rank) {
        const Tensor& counts = value(rank, Step::dispatch, "tokens_per_expert");
        const auto rows =
            to_doubles(value(rank, Step::dispatch, "dispatched_hidden_states"));
        const auto probs = to_doubles(value(rank, Step::dispatch, "dispatched_probs"));
        std::vector<Row> names;
        for (std::int64_t l = 0; l < counts.numel(); ++l) {
            const std::int64_t e = grid_.first_expert(rank) + l;
            std::vector<std::int64_t> open;  // tokens that this expert still waits for
            for (const int source : grid_.group_of(rank))
                for (const std::int64_t t : tokens_.of_rank[source])
                    if (routed(t, e)) open.push_back(t);
            for (std::int64_t i = 0; i < counts.data<std::int64_t>()[l]; ++i) {
                const auto at = std::int64_t(names.size());
                const auto found =
                    std::find_if(open.begin(), open.end(), [&](std::int64_t t) {
                        return holds_token(rows, at, t) &&
                               float(probs[at]) == float(prob(t, e));
                    });
                names.push_back({found == open.end() ? -1 : *found, {e}});
                if (found != open.end()) open.erase(found);
            }
            require(open.empty(),
                    fmt::format("rank {}: rows of e{} are missing", rank, e));
        }
        for (const Row& row : names)
            require(row.token >= 0, fmt::format("rank {}: a row of e{} is no token's",
                                                rank, row.experts[0]));
        return names;
    }

    bool holds_token(const std::vector<double>& rows, std::int64_t row,
                     std::int64_t token) const {
        const std::int64_t H = config_.hidden_size;
        return std::int64_t(rows.size()) >= (row + 1) * H &&
               std::equal(rows.begin() + row * H, rows.begin() + (row + 1) * H,
                          hidden_.begin() + token * H);
    }

    /// The recorded tensor must hold these tokens, row by row.
    void require_rows(int rank, const char* name, const std::vector<Row>& expected) {
        const auto rows = to_doubles(value(rank, Step::dispatch, name));
        bool same = rows.size() == expected.size() * std::size_t(config_.hidden_size);
        for (std::size_t i = 0; same && i < expected.size(); ++i)
            same = holds_token(rows, std::int64_t(i), expected[i].token);
        require(same, fmt::format("rank {}: {} holds other rows than these", rank, name));
    }

    void require(bool holds, const std::string& problem) {
        if (!holds) problems_.push_back(problem);
    }

    // ---------------------------------------------------------------------- what is
    // shown
    void print_header() const {
        fmt::print("{} on {}, {} experts, top-{}, {}; {}{}\n",
                   plural(world() * tokens_.per_rank(), "token"), plural(world(), "rank"),
                   config_.num_experts(), config_.moe_router_topk, dispatcher(),
                   to_string(spec_), spec_.is_emulated() ? ", emulated" : "");
        fmt::print(
            "t3→e1 is the row of token 3 for expert 1; of each row you see the "
            "first {} values\n",
            std::min(config_.hidden_size, kMostValues));
    }

    void print_choices() const {
        const std::int64_t H = config_.hidden_size;
        fmt::print("\n③ Who holds what: the tokens, and the experts that they chose\n");
        for (int rank = 0; rank < world(); ++rank) {
            fmt::print("rank {:<3} has e{}{}, exchanges with ranks {}\n", rank,
                       fmt::join(experts_on(rank), " e"),
                       grid_.shards() == 1
                           ? ""
                           : fmt::format(" (shard {} of {})", grid_.shard_of(rank),
                                         grid_.shards()),
                       fmt::join(grid_.group_of(rank), " "));
            for (const std::int64_t t : tokens_.of_rank[rank]) {
                Words choices;
                for (std::int64_t e = 0; e < config_.num_experts(); ++e)
                    if (routed(t, e))
                        choices.push_back(fmt::format("e{} {:.4f}", e, prob(t, e)));
                print_words(fmt::format("  {:<5}{}   ", fmt::format("t{}", t),
                                        first_values(hidden_, t, H, "{:>7.2f}")),
                            40, choices);
            }
        }
    }

    void print_sends() {
        fmt::print("\n⑥ Dispatch: {}\n",
                   dispatcher() == "allgather"
                       ? "every token to everybody, with its map and probabilities"
                   : dispatcher() == "alltoall"
                       ? "a row for every choice, ordered by expert, to the expert's rank"
                       : "a row for every rank that has any of the token's experts");
        for (int from = 0; from < world(); ++from) {
            std::vector<Row> all;
            for (const int to : grid_.group_of(from)) {
                const std::vector<Row> rows = sent_rows(from, to);
                if (dispatcher() != "allgather" || all.empty())
                    all.insert(all.end(), rows.begin(), rows.end());
                print_link(from, to, from == to ? "keeps" : fmt::format("to {}", to),
                           rows);
            }
            require_rows(from, "sent_hidden_states", all);
            print_splits(from);
        }
    }

    /// One line per link; the bytes are those counted.
    void print_link(int rank, int peer, const std::string& direction,
                    const std::vector<Row>& rows) const {
        const auto& sent = records_[rank].sent;
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
        const TensorMap& values = records_[rank].values.at(Step::dispatch);
        for (const char* name : {"input_splits", "output_splits"})
            if (const auto found = values.find(name); found != values.end())
                fmt::print("{:<9}{:<14} {}\n", "", name,
                           fmt::join(to_doubles(found->second), " "));
    }

    void print_received() {
        fmt::print("\n⑥ What each rank received, as it arrived\n");
        for (int rank = 0; rank < world(); ++rank) {
            std::vector<Row> all;
            for (const int from : grid_.group_of(rank)) {
                if (dispatcher() == "alltoall" &&
                    grid_.shard_of(from) != grid_.shard_of(rank))
                    continue;
                const std::vector<Row> rows = sent_rows(from, rank);
                all.insert(all.end(), rows.begin(), rows.end());
                print_link(rank, from,
                           from == rank ? "its own" : fmt::format("from {}", from), rows);
            }
            require_rows(rank, "received_hidden_states", all);
        }
        if (dispatcher() == "alltoall" && grid_.shards() > 1)
            fmt::print("         and copies it to the other {} of the same experts\n",
                       grid_.shards() == 2 ? "shard" : "shards");
    }

    void print_rows() {
        const std::int64_t H = config_.hidden_size;
        fmt::print("\n⑥ In expert order, and ⑨ what the experts make of it{}\n",
                   grid_.shards() == 1 ? "" : " (each shard a part of the sum)");
        for (int rank = 0; rank < world(); ++rank) {
            names_.push_back(name_rows(rank));
            const auto rows =
                to_doubles(value(rank, Step::dispatch, "dispatched_hidden_states"));
            const auto probs =
                to_doubles(value(rank, Step::dispatch, "dispatched_probs"));
            const auto outputs = to_doubles(value(rank, Step::fc2, "expert_output"));
            fmt::print("rank {:<3} {:<10} prob    row{:<28}  output\n", rank, "", "");
            for (std::size_t i = 0; i < names_[rank].size(); ++i)
                print_words(
                    fmt::format(
                        "         {:<10}{:.4f} {}  {}",
                        names_[rank][i].token < 0 ? "?" : name_of(names_[rank][i]),
                        probs[i], first_values(rows, i, H, "{:>7.2f}"),
                        first_values(outputs, i, H, "{:>9.4f}")),
                    100, {});
        }
    }

    /// Who gets what back from `rank`: the rows of the peer's tokens.
    Words returned(int rank, int peer) const {
        std::map<std::int64_t, Row> sums;
        Words names;
        for (const Row& row : names_[rank]) {
            if (row.token < 0 || owner(row.token) != peer) continue;
            names.push_back(name_of(row));
            sums[row.token].token = row.token;
            sums[row.token].experts.push_back(row.experts[0]);
        }
        if (dispatcher() == "alltoall") return names;
        names.clear();
        for (const std::int64_t t : tokens_.of_rank[peer]) {
            if (const auto found = sums.find(t); found != sums.end())
                names.push_back(
                    found->second.experts.size() == 1
                        ? name_of(found->second)
                        : fmt::format("Σ(t{}→e{})", t,
                                      fmt::join(found->second.experts, ",e")));
            else if (dispatcher() == "allgather")
                names.push_back(fmt::format("t{}: 0", t));
        }
        return names;
    }

    void print_returns() const {
        fmt::print("\n⑩ Combine: {}\n",
                   dispatcher() == "alltoall" ? "every row goes back to its token's rank"
                   : dispatcher() == "allgather"
                       ? "what a rank's experts add to every token, zeros included"
                       : "a rank adds up what its experts made of a token, and sends the "
                         "sum");
        for (int rank = 0; rank < world(); ++rank)
            for (const int peer : grid_.group_of(rank)) {
                const Words names = returned(rank, peer);
                print_words(
                    fmt::format("rank {:<3} {:<7}  {:<16}", rank,
                                peer == rank ? "keeps" : fmt::format("to {}", peer),
                                plural(std::int64_t(names.size()), "row")),
                    33, names);
            }
    }

    void print_outputs() {
        const std::int64_t H = config_.hidden_size;
        const double bound = tier_bound(spec_.coarsest_dtype(), false);
        const auto expected = to_doubles(whole_.output);
        std::vector<Tensor> parts;
        fmt::print(
            "\n⑩ The tokens' outputs, beside those of one rank with all experts\n");
        for (int rank = 0; rank < world(); ++rank) {
            parts.push_back(records_[rank].output);
            const auto outputs = to_doubles(records_[rank].output);
            for (std::size_t i = 0; i < tokens_.of_rank[rank].size(); ++i) {
                const std::int64_t t = tokens_.of_rank[rank][i];
                fmt::print("rank {:<3} {:<5}{}   one rank:{}\n",
                           i == 0 ? fmt::to_string(rank) : "", fmt::format("t{}", t),
                           first_values(outputs, std::int64_t(i), H, "{:>9.4f}"),
                           first_values(expected, t, H, "{:>9.4f}"));
            }
        }
        const Tensor output = join_rows(parts, tokens_);
        const Closeness closeness = measure_closeness(output, whole_.output);
        if (closeness.within(bound))
            fmt::print(
                "\n✓ outputs equal those of one rank: error {:.1e}, bound {:.0e}\n",
                closeness.error, bound);
        else
            require(false,
                    "outputs: " + describe_worst(closeness, output, whole_.output));
    }

    MoEConfig config_;
    ModuleSpec spec_;
    ExpertGrid grid_;
    RankTokens tokens_;
    std::vector<double> hidden_;
    std::vector<RankRecord> records_;
    WholeRecord whole_;
    std::vector<std::vector<double>> probs_;
    std::vector<std::vector<Row>> names_;  // by rank, in expert order
    Words problems_;
};

}  // namespace

int trace_ranks(const RankTraceRequest& request) {
    return Tracer(request).print();
}

}  // namespace moe
