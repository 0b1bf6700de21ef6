/// @file
/// The omniscient view of a dispatch: who has to send how many rows to whom, from the
/// routing maps of all ranks, in plain loops and without communication.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/ranks/run.h"

namespace moe {

/// The steps in which a dispatcher exchanges rows.
inline constexpr std::array kExchangeSteps = {
    Step::dispatch, Step::combine, Step::combine_backward, Step::dispatch_backward};

/// Ranks by their place among those that exchange tokens.
class ExpertGrid {
  public:
    ExpertGrid(const MoEConfig& config, const distributed::ParallelSizes& sizes)
        : grid_(distributed::RankGenerator::experts(sizes)),
          groups_(grid_.get_ranks("tp-ep")),
          shards_(sizes.expert_tensor),
          local_experts_(config.num_local_experts()) {}

    /// All ranks that `rank` exchanges tokens with, itself among them.
    const std::vector<int>& group_of(int rank) const {
        return groups_[grid_.color(rank, "tp-ep")];
    }
    /// Who, in the group of `rank`, has shard `shard` of expert `expert`.
    int holder(int rank, std::int64_t expert, int shard) const {
        return group_of(rank)[expert / local_experts_ * shards_ + shard];
    }
    int shards() const { return shards_; }
    int shard_of(int rank) const { return grid_.key(rank, "tp"); }
    std::int64_t first_expert(int rank) const {
        return grid_.key(rank, "ep") * local_experts_;
    }

  private:
    distributed::RankGenerator grid_;
    std::vector<std::vector<int>> groups_;
    int shards_;
    std::int64_t local_experts_;
};

/// [from][to], 0 on the diagonal.
using Links = std::vector<std::vector<std::int64_t>>;

std::int64_t total(const Links& links);

/// What the dispatcher sends by: the map (T, E) u8 itself, or, where all-to-all pads for
/// quantization, with each rank's experts filled up by its own first tokens that are not
/// theirs.
Tensor sent_map(const MoEConfig& config, const RankTokens& tokens, const Tensor& map);

/// Token rows that cross each link in ⑥. AllGather: all tokens to everybody. AlltoAll: a
/// row per token and expert to the expert's rank, and from there to the other shards of
/// the expert; with moe_router_padding_for_quantization also rows that fill up the
/// experts. Flex: a row per token and rank that has any of its experts.
/// @param routing_map  (T, E) u8 of all tokens
Links dispatched_rows(const MoEConfig& config, const distributed::ParallelSizes& sizes,
                      const RankTokens& tokens, const Tensor& routing_map);

/// Rows that each rank's experts get in ⑥, padded if the config says so: (W, L).
Tensor rows_per_expert(const MoEConfig& config, const distributed::ParallelSizes& sizes,
                       const RankTokens& tokens, const Tensor& routing_map);

/// What balanced random routing makes of it: rows sent per token, on average.
double balanced_rows_per_token(const MoEConfig& config);

/// Ranks (of different experts) that a token visits under balanced random routing:
/// EP (1 - C(E - L, K) / C(E, K)). Choices within groups of experts have no such formula:
/// then the mean of 4096 tokens with random scores, which is right to about 0.02.
double balanced_hit(const MoEConfig& config);

/// The same, counted.
double counted_hit(const MoEConfig& config, const Tensor& routing_map);

/// How a tier's dispatcher sends, where tiers differ.
struct Sending {
    DType dtype = DType::f32;  ///< of rows
    bool dense = true;       ///< maps of all experts, rather than K choices of each token
    bool has_slots = false;  ///< Flex: each source has its own, and needs no counts
};
/// @param dense  what the dispatcher took from its router
Sending sending_of(const ComponentSpec& dispatcher, bool dense);

/// What a step of kExchangeSteps puts on a link.
struct LinkBytes {
    std::int64_t row = 0;   ///< bytes of one row, with what goes along with it
    std::int64_t once = 0;  ///< bytes besides
};

/// The rows are those of ⑥; in ⑩ and ⑮ they come back, from the other end of the link.
/// A row is H elements, in the probabilities' dtype where ranks' sums are added up on the
/// way (⑩ of AllGather, and of AlltoAll between shards). With it go, in ⑥ and ⑮:
///
/// * AllGather: the token's probabilities (E) and, in ⑥, its map (E); or of its choices
///   alone (K), with ids i32;
/// * AlltoAll: its probability; in ⑥, once, counts (E) i32 unless padded to capacity;
/// * Flex: K ETP probabilities; in ⑥ as many ids i32 and its source (2) i32, and, once,
///   counts (EP ETP) i64, where sources have no slots of their own, and how many tokens
///   there are (1) i64, where that is needed and not bounded. What kernels that wait for
///   each other say with it, a count and a flag of 4 bytes, is not counted.
/// @param shards  the link joins two shards of the same experts
LinkBytes link_bytes(const MoEConfig& config, Step step, const Sending& sending,
                     bool shards = false);

/// Bytes that each link carries in a step of kExchangeSteps, with no exchange of shared
/// experts among them.
/// @param rows  dispatched_rows()
Links exchanged_bytes(const MoEConfig& config, const distributed::ParallelSizes& sizes,
                      const Links& rows, Step step, const Sending& sending);

}  // namespace moe
