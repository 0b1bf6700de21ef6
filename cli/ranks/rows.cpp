// rank_rows.cpp: which row of which rank is whose.

#include "cli/ranks/rows.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "core/transfer.h"
#include "distributed/flex_plan.h"

namespace moe {

std::string name_of(const Row& row) {
    return row.experts.empty()
               ? fmt::format("t{}", row.token)
               : fmt::format("t{}→e{}", row.token, fmt::join(row.experts, ",e"));
}

NamedRun::NamedRun(const RankJob& job, const distributed::ParallelSizes& sizes,
                   std::int64_t seq_len, std::int64_t micro_batch)
    : config_(job.config),
      grid_(config_, sizes),
      tokens_(split_tokens(sizes, seq_len, micro_batch)),
      sent_(to_doubles(job.hidden)) {
    std::int64_t next = 0;
    for (auto& mine : tokens_.of_rank)
        for (std::int64_t& token : mine) token = next++;
    records_ = run_on_ranks(job, tokens_);
    whole_ = run_whole(job, tokens_);
    if (config_.moe_latent_size) sent_.clear();
    std::vector<std::uint8_t> maps;
    for (const RankRecord& record : records_) {
        if (config_.moe_latent_size) {
            const auto latent =
                to_doubles(record.values.at(Step::dispatch).at("latent_hidden_states"));
            sent_.insert(sent_.end(), latent.begin(), latent.end());
        }
        const TensorMap& values = record.values.at(Step::token_dropping);
        probs_.push_back(to_doubles(values.at("probs")));
        const Tensor& map = values.at("routing_map");
        maps.insert(maps.end(), map.data<std::uint8_t>(),
                    map.data<std::uint8_t>() + map.numel());
    }
    map_ = sent_map(config_, tokens_, Tensor::from({next, config_.num_experts()}, maps));
}

double NamedRun::prob(std::int64_t token, std::int64_t expert) const {
    const std::int64_t local = token % tokens_.per_rank();
    return probs_[owner(token)][local * config_.num_experts() + expert];
}

bool NamedRun::routed(std::int64_t token, std::int64_t expert) const {
    return map_.data<std::uint8_t>()[token * config_.num_experts() + expert] != 0;
}

std::vector<std::int64_t> NamedRun::experts_on(int rank) const {
    std::vector<std::int64_t> experts(config_.num_local_experts());
    std::iota(experts.begin(), experts.end(), grid_.first_expert(rank));
    return experts;
}

std::vector<Row> NamedRun::sent_rows(int from, int to) const {
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

std::vector<std::vector<std::int64_t>> NamedRun::tokens_of_experts(int rank) const {
    const std::vector<std::int64_t> experts = experts_on(rank);
    std::vector<std::vector<std::int64_t>> tokens(experts.size());
    std::vector<std::int64_t> received, counts;
    for (const int source : grid_.group_of(rank))
        for (const std::int64_t t : tokens_.of_rank[source]) {
            bool comes = false;
            for (std::size_t l = 0; l < experts.size(); ++l) {
                if (!routed(t, experts[l])) continue;
                tokens[l].push_back(t);
                comes = true;
            }
            if (comes) received.push_back(t);
        }
    for (const auto& own : tokens) counts.push_back(std::int64_t(own.size()));
    const auto multiple = std::size_t(get_align_size_for_quantization(config_));
    if (!config_.moe_router_padding_for_quantization || dispatcher() != "flex" ||
        !distributed::enough_tokens_to_pad(counts, std::int64_t(received.size()),
                                           std::int64_t(multiple)))
        return tokens;
    for (std::size_t l = 0; l < experts.size(); ++l)
        for (std::size_t i = 0; tokens[l].size() % multiple != 0; ++i)
            if (!routed(received[i], experts[l])) tokens[l].push_back(received[i]);
    return tokens;
}

std::vector<Row> NamedRun::name_rows(int rank) {
    const Tensor& counts = value(rank, Step::dispatch, "tokens_per_expert");
    const auto rows = to_doubles(value(rank, Step::dispatch, "dispatched_hidden_states"));
    const auto probs = to_doubles(value(rank, Step::dispatch, "dispatched_probs"));
    auto tokens = tokens_of_experts(rank);
    std::vector<Row> names;
    for (std::int64_t l = 0; l < counts.numel(); ++l) {
        const std::int64_t e = grid_.first_expert(rank) + l;
        std::vector<std::int64_t>& open = tokens[l];  // that it still waits for
        for (std::int64_t i = 0; i < counts.data<std::int32_t>()[l]; ++i) {
            const auto at = std::int64_t(names.size());
            const auto found =
                std::find_if(open.begin(), open.end(), [&](std::int64_t t) {
                    return holds_token(rows, at, t) &&
                           float(probs[at]) == float(prob(t, e));
                });
            names.push_back({found == open.end() ? -1 : *found, {e}});
            if (found != open.end()) open.erase(found);
        }
        require(open.empty(), fmt::format("rank {}: rows of e{} are missing", rank, e));
    }
    for (const Row& row : names)
        require(row.token >= 0,
                fmt::format("rank {}: a row of e{} is no token's", rank, row.experts[0]));
    return names;
}

bool NamedRun::holds_token(const std::vector<double>& rows, std::int64_t row,
                           std::int64_t token) const {
    const std::int64_t width = config_.latent_size();
    return std::int64_t(rows.size()) >= (row + 1) * width &&
           std::equal(rows.begin() + row * width, rows.begin() + (row + 1) * width,
                      sent_.begin() + token * width);
}

void NamedRun::require_rows(int rank, const char* name,
                            const std::vector<Row>& expected) {
    const auto rows = to_doubles(value(rank, Step::dispatch, name));
    bool same = rows.size() == expected.size() * std::size_t(config_.latent_size());
    for (std::size_t i = 0; same && i < expected.size(); ++i)
        same = holds_token(rows, std::int64_t(i), expected[i].token);
    require(same, fmt::format("rank {}: {} holds other rows than these", rank, name));
}

void NamedRun::require(bool holds, const std::string& problem) {
    if (!holds) problems_.push_back(problem);
}

}  // namespace moe
