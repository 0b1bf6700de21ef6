/// @file
/// A run over ranks whose rows have names: which token, for which experts, lies where.
#pragma once

#include <string>
#include <vector>

#include "cli/ranks/routes.h"
#include "cli/ranks/run.h"

namespace moe {

/// A row on its way: a token with those of its experts that it is meant for.
struct Row {
    std::int64_t token;
    std::vector<std::int64_t> experts;
};

/// "t3→e1", "t3→e0,e1", or "t3" for everybody.
std::string name_of(const Row& row);

/// What the ranks recorded, what one rank makes of the same tokens, and which row is
/// whose. Tokens are numbered rank by rank.
class NamedRun {
  public:
    /// Runs the job.
    NamedRun(const RankJob& job, const distributed::ParallelSizes& sizes,
             std::int64_t seq_len, std::int64_t micro_batch);

    int world() const { return int(records_.size()); }
    const MoEConfig& config() const { return config_; }
    const std::string& dispatcher() const { return config_.moe_token_dispatcher_type; }
    const ExpertGrid& grid() const { return grid_; }
    const RankTokens& tokens() const { return tokens_; }
    const RankRecord& record(int rank) const { return records_[rank]; }
    const WholeRecord& whole() const { return whole_; }
    const Tensor& value(int rank, Step step, const char* name) const {
        return records_[rank].values.at(step).at(name);
    }

    std::int64_t owner(std::int64_t token) const { return token / tokens_.per_rank(); }
    /// As the token's own rank has them.
    double prob(std::int64_t token, std::int64_t expert) const;
    bool routed(std::int64_t token, std::int64_t expert) const;  ///< or padding
    std::vector<std::int64_t> experts_on(int rank) const;

    /// The rows that `from` sends `to`, in order. AlltoAll sends to the ranks of ep,
    /// which have its shard of other experts.
    std::vector<Row> sent_rows(int from, int to) const;

    /// The rows of `rank` by expert, named by what they hold: the token with that expert
    /// in its map whose dispatched state and probability they are; -1 when it is no
    /// token's.
    std::vector<Row> name_rows(int rank);

    /// Whether the recorded tensor holds these tokens, row by row.
    void require_rows(int rank, const char* name, const std::vector<Row>& expected);

    /// What did not hold.
    const std::vector<std::string>& problems() const { return problems_; }
    void require(bool holds, const std::string& problem);

  private:
    /// Tokens of each local expert's rows; those that flex pads with come last.
    std::vector<std::vector<std::int64_t>> tokens_of_experts(int rank) const;
    bool holds_token(const std::vector<double>& rows, std::int64_t row,
                     std::int64_t token) const;

    MoEConfig config_;
    ExpertGrid grid_;
    RankTokens tokens_;
    std::vector<double> sent_;  // (T, ℓ), the tokens as they are dispatched
    std::vector<RankRecord> records_;
    WholeRecord whole_;
    std::vector<std::vector<double>> probs_;  // by rank (T of it, E)
    Tensor map_;                              // (T, E) u8, that is sent by
    std::vector<std::string> problems_;
};

}  // namespace moe
