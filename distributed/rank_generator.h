/// @file
/// Which ranks form which group, by Megatron's order. Source: parallel_state.py,
/// RankGenerator and generate_masked_orthogonal_rank_groups.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"

namespace moe::distributed {

/// How a world of ranks is cut. The dense layers and the experts each have a grid of
/// their own over the same ranks: tp x cp x dp x pp, and expt_tp x ep x expt_dp x pp.
struct ParallelSizes {
    int world = 1;
    int tensor = 1, context = 1, pipeline = 1;
    int expert = 1, expert_tensor = 1;

    /// DP and expert-DP: what is left of the world.
    int data() const { return world / (tensor * context * pipeline); }
    int expert_data() const { return world / (expert_tensor * expert * pipeline); }
};

/// The sizes of a finalized config over `world` ranks. InputError, naming the field, when
/// they do not divide it.
ParallelSizes parallel_sizes(const MoEConfig& config, int world);

/// One grid of ranks. Axes are named "tp", "cp", "ep", "dp", "pp"; the first in `order`
/// varies fastest from rank to rank.
class RankGenerator {
  public:
    /// InputError when a size is not positive or the order does not name each axis once.
    RankGenerator(int tp, int ep, int dp, int pp, int cp,
                  const std::string& order = "tp-cp-ep-dp-pp");

    /// The grid of the dense layers (ep = 1), and that of the experts (cp = 1, tp = ETP).
    static RankGenerator dense(const ParallelSizes& sizes);
    static RankGenerator experts(const ParallelSizes& sizes);

    int world_size() const;

    /// Which group over the axes `token` ("tp-ep") a rank is in: ranks that differ only
    /// along these axes share a color.
    int color(int rank, const std::string& token) const;
    /// The rank's place within that group.
    int key(int rank, const std::string& token) const;
    /// Ranks of a group of that token.
    int group_size(const std::string& token) const;
    /// All groups over those axes, by color; ranks of a group by key.
    std::vector<std::vector<int>> get_ranks(const std::string& token) const;

  private:
    struct Axis {
        std::string name;
        int size;
    };
    /// Mixed-radix number of the rank's coordinates along the axes that are (or are not)
    /// in `token`.
    int number(int rank, const std::string& token, bool in_token) const;

    std::vector<Axis> axes_;  // fastest first
};

}  // namespace moe::distributed
