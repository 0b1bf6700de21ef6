/// @file
/// What the suites over grids of ranks share: the grids, the layer on every rank of one,
/// and the omniscient oracle, which knows who holds which row without asking anybody.
#pragma once

#include "core/moe_layer.h"
#include "distributed/process_groups.h"
#include "tests/support.h"

namespace moe::test {

/// How many ranks, and how they are cut.
struct Grid {
    int tp, cp, ep, etp, world;
};
/// "tp2_cp1_ep2_etp1_w4".
std::string to_string(const Grid& grid);
inline void PrintTo(const Grid& grid, std::ostream* out) {
    *out << to_string(grid);
}

/// A dozen grids of at most 8 ranks; expert-DP = world / (EP ETP) is above 1 in some.
std::vector<Grid> grids();

/// Those of the suppliers whose tier has this dispatcher over ranks.
std::vector<ComponentSpec> with_dispatcher(std::vector<ComponentSpec> suppliers,
                                           const std::string& dispatcher);

/// The same in their precise types: bf16 only where a tier has nothing else.
std::vector<ComponentSpec> grid_suppliers(const std::string& dispatcher);

/// The config on that grid and through that dispatcher, finalized. InputError where
/// MoEConfig does not allow it.
MoEConfig on_grid(MoEConfig config, const Grid& grid, const std::string& dispatcher);

/// One rank's forward and backward.
struct RankRun {
    GroupsPtr groups;  ///< to ask who the rank is; nobody is there to talk to any more
    Tensor output;     ///< (S, B, H)
    MoELayer::Gradients gradients;
    ValueRecorder values;
};

/// @param parameters  of the whole layer
/// @param hidden, doutput  (S, B, H) of each rank
std::vector<RankRun> run_on_ranks(const MoEConfig& config, const ComponentSpec& supplier,
                                  const TensorMap& parameters,
                                  const std::vector<Tensor>& hidden,
                                  const std::vector<Tensor>& doutput);

/// The same layer on one rank, in fp64 on the CPU.
RankRun run_alone(const MoEConfig& config, const TensorMap& parameters,
                  const Tensor& hidden, const Tensor& doutput);

/// The same, one rank's tokens after another: what ranks with a capacity do, who each
/// turn away their own tokens. Outputs lie behind each other, gradients are summed.
RankRun run_each_alone(const MoEConfig& config, const TensorMap& parameters,
                       const std::vector<Tensor>& hidden,
                       const std::vector<Tensor>& doutput);

/// The parts one after another along axis 0, as doubles.
Tensor concatenate(const std::vector<Tensor>& parts);

/// a + b, as doubles; b where a is undefined.
Tensor add(const Tensor& a, const Tensor& b);

/// Gradients as a data-parallel optimizer would sum them: experts and shared experts over
/// the ranks that hold the same shard, all others over the world. One map per rank.
std::vector<TensorMap> reduce_gradients(const std::vector<RankRun>& runs);

/// Outputs and gradients of all ranks are those of the whole layer: slices of its tokens,
/// shards of its gradients.
void expect_whole(const MoEConfig& config, const std::vector<RankRun>& runs,
                  const RankRun& whole, double bound);

/// A token's row on its way.
struct Row {
    int rank;  ///< of the world, where the token lives
    std::int64_t token, expert;
};

/// What one rank holds after each step of a dispatch.
struct Holdings {
    std::vector<Row> sent, received, dispatched;
    std::vector<std::int64_t> input_splits, output_splits, output_splits_tp;
    std::vector<std::int64_t> tokens_per_expert;
};

/// From everybody's routing maps (T, E), who holds which row. `sent` and `received` are
/// AlltoAll's: the AllGather dispatcher moves tokens, not rows. Source of the orders:
/// token_dispatcher.py; AlltoAll's is (tp, source ep, token) within an expert,
/// AllGather's and Flex's (source ep, tp, token).
std::vector<Holdings> who_holds_what(const MoEConfig& config,
                                     const std::vector<Tensor>& routing_maps);

/// (N, H) or (N): those rows of everybody's hidden states (T, H), or those entries of
/// everybody's probabilities (T, E).
Tensor rows_of(const std::vector<Row>& rows, const std::vector<Tensor>& hidden);
Tensor probs_of(const std::vector<Row>& rows, const std::vector<Tensor>& probs);

}  // namespace moe::test
