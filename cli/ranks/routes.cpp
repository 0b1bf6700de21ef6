// rank_routes.cpp: who has to send what to whom, seen from above.

#include "cli/ranks/routes.h"

#include <algorithm>
#include <set>

#include "core/rng.h"
#include "distributed/flex_plan.h"
#include "reference_cpu/scores.h"

namespace moe {
namespace {

using distributed::ParallelSizes;

void gather_rows(Links& rows, const ExpertGrid& grid, const RankTokens& tokens) {
    for (int from = 0; from < int(rows.size()); ++from)
        for (const int to : grid.group_of(from))
            if (to != from) rows[from][to] = tokens.per_rank();
}

/// One row of one token to one expert: over ep, then over expt_tp.
void route_row(Links& rows, const ExpertGrid& grid, int from, std::int64_t expert) {
    const int first = grid.holder(from, expert, grid.shard_of(from));
    if (first != from) ++rows[from][first];
    for (int shard = 0; shard < grid.shards(); ++shard)
        if (const int other = grid.holder(from, expert, shard); other != first)
            ++rows[first][other];
}

bool pads(const MoEConfig& config, const std::string& dispatcher) {
    return config.moe_router_padding_for_quantization &&
           config.moe_token_dispatcher_type == dispatcher;
}

std::int64_t padded(const MoEConfig& config, std::int64_t rows) {
    const std::int64_t multiple = get_align_size_for_quantization(config);
    return (rows + multiple - 1) / multiple * multiple;
}

/// Flex fills up what a rank has received, for all its experts or for none.
/// @param counts  (L) its experts' rows
void pad_received(std::int64_t* counts, const MoEConfig& config,
                  std::int64_t received_rows) {
    const std::int64_t L = config.num_local_experts();
    const bool enough = distributed::enough_tokens_to_pad(
        {counts, counts + L}, received_rows, get_align_size_for_quantization(config));
    for (std::int64_t l = 0; enough && l < L; ++l) counts[l] = padded(config, counts[l]);
}

double choose(std::int64_t n, std::int64_t k) {
    double ways = n < k ? 0.0 : 1.0;
    for (std::int64_t i = 0; i < k && ways > 0.0; ++i)
        ways *= double(n - i) / double(i + 1);
    return ways;
}

/// Ranks per token where a token's choice is limited to some groups of experts.
double sampled_hit(const MoEConfig& config) {
    constexpr std::int64_t kTokens = 4096;
    const std::int64_t E = config.num_experts(), L = config.num_local_experts();
    const Rng scores(1);
    const std::int64_t K = config.moe_router_topk,
                       group_topk = *config.moe_router_group_topk;
    std::vector<double> keys(E);
    std::int64_t hits = 0;
    for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t e = 0; e < E; ++e) keys[e] = scores.uniform(t * E + e);
        std::set<std::int64_t> visited;
        for (const std::int64_t e : cpu::group_limited_top_k<double>(
                 keys, K, *config.moe_router_num_groups, group_topk,
                 config.moe_router_group_score_topk.value_or(K / group_topk)))
            visited.insert(e / L);
        hits += std::int64_t(visited.size());
    }
    return double(hits) / double(kTokens);
}

}  // namespace

std::int64_t total(const Links& links) {
    std::int64_t sum = 0;
    for (const auto& row : links)
        for (const std::int64_t value : row) sum += value;
    return sum;
}

Tensor sent_map(const MoEConfig& config, const RankTokens& tokens, const Tensor& map) {
    if (!pads(config, "alltoall")) return map;
    const std::int64_t E = map.dim(1);
    Tensor sent = map.clone();
    std::uint8_t* routed = sent.data<std::uint8_t>();
    for (const auto& own : tokens.of_rank)
        for (std::int64_t e = 0; e < E; ++e) {
            std::int64_t count = 0;
            for (const std::int64_t t : own) count += routed[t * E + e];
            std::int64_t missing = padded(config, count) - count;
            for (const std::int64_t t : own)
                if (missing > 0 && routed[t * E + e] == 0) {
                    routed[t * E + e] = 1;
                    --missing;
                }
        }
    return sent;
}

Links dispatched_rows(const MoEConfig& config, const ParallelSizes& sizes,
                      const RankTokens& tokens, const Tensor& routing_map) {
    const ExpertGrid grid(config, sizes);
    Links rows(sizes.world, std::vector<std::int64_t>(sizes.world, 0));
    if (config.moe_token_dispatcher_type == "allgather") {
        gather_rows(rows, grid, tokens);
        return rows;
    }
    const std::int64_t E = config.num_experts();
    const Tensor sent = sent_map(config, tokens, routing_map);
    for (int from = 0; from < sizes.world; ++from)
        for (const std::int64_t t : tokens.of_rank[from]) {
            std::set<int> visited;  // ranks with any of the token's experts
            for (std::int64_t e = 0; e < E; ++e) {
                if (sent.data<std::uint8_t>()[t * E + e] == 0) continue;
                if (config.moe_token_dispatcher_type == "alltoall")
                    route_row(rows, grid, from, e);
                else
                    for (int shard = 0; shard < grid.shards(); ++shard)
                        visited.insert(grid.holder(from, e, shard));
            }
            for (const int to : visited)
                if (to != from) ++rows[from][to];
        }
    return rows;
}

Tensor rows_per_expert(const MoEConfig& config, const ParallelSizes& sizes,
                       const RankTokens& tokens, const Tensor& routing_map) {
    const ExpertGrid grid(config, sizes);
    const std::int64_t E = config.num_experts(), L = config.num_local_experts();
    const Tensor sent = sent_map(config, tokens, routing_map);
    Tensor counts = Tensor::zeros({sizes.world, L}, DType::i64);
    for (int rank = 0; rank < sizes.world; ++rank) {
        std::int64_t* own = counts.data<std::int64_t>() + rank * L;
        std::int64_t received_rows = 0;  // by flex, one for a token
        for (const int source : grid.group_of(rank))
            for (const std::int64_t t : tokens.of_rank[source]) {
                const std::uint8_t* experts =
                    sent.data<std::uint8_t>() + t * E + grid.first_expert(rank);
                for (std::int64_t l = 0; l < L; ++l) own[l] += experts[l];
                received_rows +=
                    std::any_of(experts, experts + L, [](auto on) { return on != 0; });
            }
        if (pads(config, "flex")) pad_received(own, config, received_rows);
    }
    return counts;
}

double balanced_hit(const MoEConfig& config) {
    if (config.moe_router_group_topk) return sampled_hit(config);
    const std::int64_t E = config.num_experts(), K = config.moe_router_topk;
    const std::int64_t L = config.num_local_experts();
    return double(config.expert_model_parallel_size) *
           (1.0 - choose(E - L, K) / choose(E, K));
}

double counted_hit(const MoEConfig& config, const Tensor& routing_map) {
    const std::int64_t T = routing_map.dim(0), E = routing_map.dim(1);
    const std::int64_t L = config.num_local_experts();
    std::int64_t hits = 0;
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t first = 0; first < E; first += L) {
            const std::uint8_t* experts =
                routing_map.data<std::uint8_t>() + t * E + first;
            hits += std::any_of(experts, experts + L, [](auto on) { return on != 0; });
        }
    return T == 0 ? 0.0 : double(hits) / double(T);
}

double balanced_rows_per_token(const MoEConfig& config) {
    const double EP = double(config.expert_model_parallel_size);
    const double ETP = double(*config.expert_tensor_parallel_size);
    const double K = double(config.moe_router_topk);
    if (config.moe_token_dispatcher_type == "allgather") return EP * ETP - 1.0;
    if (config.moe_token_dispatcher_type == "alltoall")
        return K * (EP - 1.0) / EP + K * (ETP - 1.0);
    return balanced_hit(config) * (ETP - 1.0 / EP);
}

Sending sending_of(const ComponentSpec& dispatcher, bool dense) {
    return {dispatcher.dtype, dense, dispatcher.tier == "optimized_gpu"};
}

LinkBytes link_bytes(const MoEConfig& config, Step step, const Sending& sending,
                     bool shards) {
    constexpr std::int64_t kInteger = sizeof(std::int32_t);
    const std::int64_t E = config.num_experts(), K = config.moe_router_topk,
                       ETP = *config.expert_tensor_parallel_size;
    const std::int64_t H = config.latent_size(),
                       element = std::int64_t(size_of(sending.dtype));
    const std::int64_t prob =
        std::int64_t(size_of(probs_placement({MemorySpace::host, sending.dtype}).dtype));
    const std::string& dispatcher = config.moe_token_dispatcher_type;
    const bool sums = dispatcher == "allgather" || (dispatcher == "alltoall" && shards);
    if (step == Step::combine) return {H * (sums ? prob : element)};
    if (step == Step::combine_backward) return {H * element};
    const bool forward = step == Step::dispatch;
    MOE_CHECK(forward || step == Step::dispatch_backward);
    LinkBytes bytes{H * element};
    if (dispatcher == "allgather") {
        const std::int64_t id = !forward ? 0 : sending.dense ? 1 : kInteger;
        bytes.row += (sending.dense ? E : K) * (prob + id);
    } else if (dispatcher == "alltoall") {
        bytes.row += prob;
        if (forward && !config.moe_pad_expert_input_to_capacity)
            bytes.once = E * kInteger;
    } else {
        bytes.row += ETP * K * prob;
        if (forward) {
            bytes.row += (ETP * K + 2) * kInteger;
            const bool asks_for_tokens =
                !config.moe_flex_max_tokens_per_rank &&
                (sending.has_slots || config.moe_expert_rank_capacity_factor);
            const std::int64_t counts =
                sending.has_slots ? 0 : config.expert_model_parallel_size * ETP;
            const std::int64_t numbers = counts + (asks_for_tokens ? 1 : 0);
            bytes.once = numbers * std::int64_t(sizeof(std::int64_t));
        }
    }
    return bytes;
}

Links exchanged_bytes(const MoEConfig& config, const ParallelSizes& sizes,
                      const Links& rows, Step step, const Sending& sending) {
    const ExpertGrid grid(config, sizes);
    const bool returns = step == Step::combine || step == Step::dispatch_backward;
    Links bytes(sizes.world, std::vector<std::int64_t>(sizes.world, 0));
    for (int from = 0; from < sizes.world; ++from)
        for (const int to : grid.group_of(from)) {
            if (to == from) continue;
            const bool shards = grid.first_expert(from) == grid.first_expert(to);
            const LinkBytes each = link_bytes(config, step, sending, shards);
            bytes[from][to] =
                (returns ? rows[to][from] : rows[from][to]) * each.row + each.once;
        }
    return bytes;
}

}  // namespace moe
