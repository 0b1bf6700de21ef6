// Auxiliary losses and the expert bias over ranks, against one rank that has everything.

#include <cstring>
#include <numeric>

#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::Splits;

constexpr std::int64_t kSeq = 12, kBatch = 3, kExperts = 6, kHidden = 5;
const std::vector<std::string> kOfReplica = {"load_balancing_loss",
                                             "seq_load_balancing_loss"};

/// DP replicas, whose sequences are cut over TP CP ranks; tp varies fastest.
struct Grid {
    int tp = 1, cp = 1, dp = 1;
    Splits lengths = {};  // of the pieces of a sequence; empty: all alike

    int pieces() const { return tp * cp; }
    int world() const { return tp * cp * dp; }
    std::int64_t length(int piece) const {
        return lengths.empty() ? kSeq / pieces() : lengths[piece];
    }
    std::int64_t first(int piece) const {
        std::int64_t sum = 0;
        for (int p = 0; p < piece; ++p) sum += length(p);
        return sum;
    }
};
const std::vector<Grid> kGrids = {{1, 1, 1}, {2, 1, 1}, {1, 2, 2},
                                  {2, 1, 2}, {2, 2, 1}, {1, 1, 3}};

/// A micro-batch of all replicas: sequence b of replica d is number b + kBatch d.
struct MicroBatch {
    Tensor hidden;   // (S, DP B, H)
    Tensor padding;  // (S, DP B) u8, or undefined
};
using MicroBatches = std::vector<MicroBatch>;

/// Positions [s, s + length) of sequences [b, b + count) of (S, B, …).
Tensor block(const Tensor& whole, std::int64_t s, std::int64_t length, std::int64_t b,
             std::int64_t count) {
    if (!whole.defined()) return {};
    Shape shape = whole.shape();
    const std::int64_t sequences = shape[1];
    const std::size_t bytes = whole.size_bytes() / (shape[0] * sequences);
    shape[0] = length;
    shape[1] = count;
    const Tensor part = Tensor::empty(shape, whole.dtype());
    const auto* from = static_cast<const std::byte*>(whole.view().bytes);
    auto* to = static_cast<std::byte*>(part.view().bytes);
    for (std::int64_t i = 0; i < length; ++i)
        std::memcpy(to + i * count * bytes, from + ((s + i) * sequences + b) * bytes,
                    count * bytes);
    return part;
}

/// A rank's own part of everything.
Tensor part_of(const Tensor& whole, const Grid& grid, int rank) {
    const int piece = rank % grid.pieces(), replica = rank / grid.pieces();
    return block(whole, grid.first(piece), grid.length(piece), replica * kBatch, kBatch);
}

/// What a router made of its last micro-batch, with a main loss without gradient.
struct Outcome {
    Losses losses;
    Tensor dlogits, dweight;      // (S, B, E), (E, H)
    Tensor expert_bias, qb_beta;  // after one update; undefined without one
};

Outcome run(Router& router, const MicroBatches& batches) {
    Outcome outcome;
    for (const auto& [hidden, padding] : batches) {
        ValueRecorder values;
        const RunContext context{.observer = &values};
        auto forward = dense_forward(router, transfer(hidden, router.placement()),
                                     transfer(padding, router.placement()), context);
        const auto zeros = [&](const Shape& shape) {
            return transfer(Tensor::zeros(shape, DType::f64), router.placement());
        };
        const std::int64_t T = hidden.dim(0) * hidden.dim(1);
        Tensor dhidden = zeros({T, kHidden});
        TensorMap gradients;
        dense_backward(router, dhidden, gradients, zeros({T, kExperts}), *forward.saved,
                       context);
        outcome.losses = forward.losses.read();
        outcome.dlogits = values.at("d_logits_losses")
                              .reshaped({hidden.dim(0), hidden.dim(1), kExperts});
        outcome.dweight = transfer(gradients.at("router.weight"),
                                   {MemorySpace::host, router.placement().dtype});
    }
    outcome.expert_bias =
        transfer(router.update_expert_bias(), {MemorySpace::host, DType::f32});
    outcome.qb_beta = transfer(router.update_qb_beta(), {MemorySpace::host, DType::f32});
    return outcome;
}

/// gradient += term.
void add(Tensor& sum, const Tensor& term) {
    if (!sum.defined()) sum = Tensor::zeros(term.shape(), DType::f64);
    const std::vector<double> values = to_doubles(term);
    for (std::size_t i = 0; i < values.size(); ++i) sum.data<double>()[i] += values[i];
}

class RanksLossesTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static MoEConfig config(const std::vector<std::string>& types,
                            const std::vector<double>& coeffs) {
        MoEConfig c = small_config(kHidden, kExperts);
        c.moe_router_load_balancing_type = types;
        c.moe_aux_loss_coeff = coeffs;
        return c;
    }
    static MicroBatch random_batch(const Grid& grid, std::uint64_t seed = 4) {
        return {random_tensor({kSeq, grid.dp * kBatch, kHidden}, seed, 1.5), {}};
    }
    /// Padding that is uneven over pieces, sequences and replicas.
    static Tensor some_padding(const Grid& grid) {
        Tensor padding = Tensor::zeros({kSeq, grid.dp * kBatch}, DType::u8);
        for (std::int64_t i = 0; i < padding.numel(); ++i)
            padding.data<std::uint8_t>()[i] = i % 7 == 3 || (i > 9 && i % 11 < 4);
        return padding;
    }
    std::unique_ptr<Router> router(MoEConfig c, const GroupsPtr& groups = nullptr) const {
        c.finalize();
        return find_tier("tier", GetParam().tier)
            .make_router(c, GetParam().dtype,
                         {{"router.weight", random_tensor({kExperts, kHidden}, 3, 0.5)}},
                         groups);
    }
    Outcome alone(const MoEConfig& c, const MicroBatches& batches) const {
        return run(*router(c), batches);
    }
    /// Every rank with its own part, by world rank.
    std::vector<Outcome> over_ranks(MoEConfig c, const Grid& grid,
                                    const MicroBatches& batches) const {
        c.tensor_model_parallel_size = grid.tp;
        c.sequence_parallel = grid.tp > 1;
        c.context_parallel_size = grid.cp;
        c.expert_tensor_parallel_size = 1;
        c.finalize();
        std::vector<Outcome> outcomes(grid.world());
        distributed::run_ranks(grid.world(), [&](distributed::Communicator& world) {
            const auto groups = make_process_groups(world, c);
            MicroBatches mine;
            for (const auto& [hidden, padding] : batches)
                mine.push_back({part_of(hidden, grid, world.rank()),
                                part_of(padding, grid, world.rank())});
            outcomes[world.rank()] = run(*router(c, groups), mine);
        });
        return outcomes;
    }
    double bound() const { return score_bound_of(GetParam()); }

    /// The ranks' losses add up to those of one rank with everything, and so do their
    /// gradients; every logit's gradient is the one it has there.
    void expect_parts_of(const Outcome& whole, const std::vector<Outcome>& ranks,
                         const Grid& grid, const std::vector<std::string>& names) const {
        Tensor dweight;
        for (const std::string& name : names) {
            double sum = 0.0;
            for (const Outcome& rank : ranks) sum += rank.losses.at(name);
            const double expected = whole.losses.at(name);
            EXPECT_NEAR(sum, expected, bound() * expected) << name;
        }
        for (int r = 0; r < int(ranks.size()); ++r) {
            EXPECT_TRUE(
                Close(ranks[r].dlogits, part_of(whole.dlogits, grid, r), bound()));
            add(dweight, ranks[r].dweight);
        }
        EXPECT_TRUE(Close(dweight, whole.dweight, bound()));
    }
};

TEST_P(RanksLossesTest, AddUpToTheWholeSequences) {
    MoEConfig c = config({"aux_loss", "seq_aux_loss"}, {0.5, 0.25});
    c.moe_z_loss_coeff = 0.01;
    for (const Grid& grid : kGrids) {
        SCOPED_TRACE(testing::Message() << grid.tp << grid.cp << grid.dp);
        const Grid replica{grid.tp, grid.cp};
        const MicroBatch batch = random_batch(grid);
        const auto ranks = over_ranks(c, grid, {batch});
        for (int d = 0; d < grid.dp; ++d) {
            const auto first = ranks.begin() + d * grid.pieces();
            const std::vector<Outcome> mine(first, first + grid.pieces());
            const Tensor hidden = block(batch.hidden, 0, kSeq, d * kBatch, kBatch);
            const Outcome whole = alone(c, {{hidden, {}}});
            expect_parts_of(whole, mine, replica, kOfReplica);
            double z = 0.0;
            for (const Outcome& rank : mine)
                z += rank.losses.at("z_loss") / grid.pieces();
            EXPECT_NEAR(z, whole.losses.at("z_loss"), bound() * z);
        }
    }
}

TEST_P(RanksLossesTest, GlobalLossSpansTheReplicasAndTheSteps) {
    MoEConfig c = config({"global_aux_loss"}, {0.125});
    c.moe_router_score_function = "sigmoid";
    for (const Grid& grid : kGrids) {
        SCOPED_TRACE(testing::Message() << grid.tp << grid.cp << grid.dp);
        const MicroBatches batches = {random_batch(grid, 4),
                                      random_batch(grid, 5),
                                      {random_batch(grid, 6).hidden, some_padding(grid)}};
        expect_parts_of(alone(c, batches), over_ranks(c, grid, batches), grid,
                        {"global_load_balancing_loss"});
    }
}

TEST_P(RanksLossesTest, LeavePaddedTokensOutOnAllRanks) {
    const MoEConfig c = config({"aux_loss", "seq_aux_loss"}, {0.5, 0.25});
    for (const Grid& grid : {Grid{2, 1, 1}, Grid{1, 3, 1}, Grid{2, 2, 1}}) {
        MicroBatch batch{random_batch(grid).hidden, some_padding(grid)};
        expect_parts_of(alone(c, {batch}), over_ranks(c, grid, {batch}), grid,
                        kOfReplica);
        // All that the last rank has: it still takes part.
        const int last = grid.pieces() - 1;
        std::fill_n(batch.padding.data<std::uint8_t>() + grid.first(last) * kBatch,
                    grid.length(last) * kBatch, 1);
        const auto ranks = over_ranks(c, grid, {batch});
        expect_parts_of(alone(c, {batch}), ranks, grid, kOfReplica);
        for (const std::string& name : kOfReplica)
            EXPECT_EQ(ranks[last].losses.at(name), 0.0);
    }
}

TEST_P(RanksLossesTest, MaskedZLossIsTheMeanOfTheRanksMeans) {
    MoEConfig c = config({"none"}, {0.0}), own = c;
    c.moe_z_loss_coeff = 0.5;
    for (const Grid& grid : {Grid{2, 1, 1}, Grid{2, 2, 1}, Grid{1, 2, 2}}) {
        const MicroBatch batch{random_batch(grid).hidden, some_padding(grid)};
        const auto ranks = over_ranks(c, grid, {batch});
        own.moe_z_loss_coeff = 0.5 / grid.pieces();
        for (int r = 0; r < grid.world(); ++r) {
            const Outcome expected = alone(
                own, {{part_of(batch.hidden, grid, r), part_of(batch.padding, grid, r)}});
            EXPECT_EQ(ranks[r].losses.at("z_loss"), expected.losses.at("z_loss"));
            EXPECT_TRUE(Close(ranks[r].dlogits, expected.dlogits, bound()));
        }
    }
}

// With a mask a load-balancing loss is multiplied by the tokens of its group, the z-loss
// by the rank's own; without one, both by the rank's own.
TEST_P(RanksLossesTest, ScaleByTokens) {
    MoEConfig z = config({"none"}, {0.0});
    z.moe_z_loss_coeff = 0.5;
    const MoEConfig of_sequences = config({"aux_loss", "seq_aux_loss"}, {0.5, 0.25});
    const MoEConfig global = config({"global_aux_loss"}, {0.125});
    // Scores' gradients are fp32 and nearly cancel; scaled, they are rounded elsewhere.
    const double bound = 4.0 * this->bound();
    for (const Grid& grid : {Grid{1, 1, 2}, Grid{2, 1, 1}, Grid{1, 2, 2}})
        for (const bool masked : {false, true}) {
            const MicroBatch batch{random_batch(grid).hidden,
                                   masked ? some_padding(grid) : Tensor()};
            std::vector<double> own;  // valid tokens by rank
            double all = 0.0;
            for (int r = 0; r < grid.world(); ++r) {
                double& valid =
                    own.emplace_back(double(grid.length(r % grid.pieces())) * kBatch);
                if (masked)
                    for (double padding : to_doubles(part_of(batch.padding, grid, r)))
                        valid -= padding;
                all += valid;
            }
            const auto of_replica = [&](int rank) {
                const auto first = own.begin() + rank / grid.pieces() * grid.pieces();
                return std::accumulate(first, first + grid.pieces(), 0.0);
            };
            for (const MoEConfig& c : {std::as_const(z), of_sequences, global}) {
                MoEConfig per_token = c;
                per_token.calculate_per_token_loss = true;
                const auto ranks = over_ranks(c, grid, {batch});
                const auto scaled = over_ranks(per_token, grid, {batch});
                for (int r = 0; r < grid.world(); ++r) {
                    const double tokens = !masked || c.moe_z_loss_coeff ? own[r]
                                          : c.aux_loss_coeff("aux_loss") > 0.0
                                              ? of_replica(r)
                                              : all;
                    std::vector<double> expected = to_doubles(ranks[r].dlogits);
                    for (double& value : expected) value *= tokens * grid.pieces();
                    EXPECT_TRUE(Close(scaled[r].dlogits,
                                      Tensor::from(ranks[r].dlogits.shape(), expected),
                                      bound));
                    EXPECT_EQ(scaled[r].losses, ranks[r].losses);
                }
            }
        }
}

TEST_P(RanksLossesTest, RanksWithoutTokensTakePart) {
    MoEConfig c =
        config({"aux_loss", "seq_aux_loss", "global_aux_loss"}, {0.5, 0.25, 0.125});
    Grid grid{3, 1, 1, {0, kSeq, 0}};
    const MicroBatch batch = random_batch(grid);
    expect_parts_of(
        alone(c, {batch}), over_ranks(c, grid, {batch}), grid,
        {"load_balancing_loss", "seq_load_balancing_loss", "global_load_balancing_loss"});
    // Nobody has any, or all are padding: no loss, and nothing to divide by.
    c.moe_z_loss_coeff = 0.5;
    Tensor all_padding = Tensor::zeros({kSeq, kBatch}, DType::u8);
    std::fill_n(all_padding.data<std::uint8_t>(), all_padding.numel(), 1);
    for (const Tensor& padding : {all_padding, Tensor()}) {
        grid.lengths = padding.defined() ? Splits{3, 3, 6} : Splits{0, 0, 0};
        for (const Outcome& rank : over_ranks(c, grid, {{batch.hidden, padding}})) {
            EXPECT_EQ(rank.losses.size(), 4u);
            for (const auto& [name, value] : rank.losses) EXPECT_EQ(value, 0.0) << name;
            for (double value : to_doubles(rank.dlogits)) EXPECT_EQ(value, 0.0);
        }
    }
}

TEST_P(RanksLossesTest, ExpertBiasCountsTheTokensOfAllRanks) {
    MoEConfig c = config({"none"}, {0.0});
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    c.moe_router_bias_update_rate = 0.25;
    for (const Grid& grid : kGrids) {
        SCOPED_TRACE(testing::Message() << grid.tp << grid.cp << grid.dp);
        const MicroBatches batches = {random_batch(grid, 7),
                                      {random_batch(grid, 8).hidden, some_padding(grid)}};
        const Tensor expected = alone(c, batches).expert_bias;
        int differ = 0;  // from what a rank's own tokens would say
        for (int r = 0; r < grid.world(); ++r) {
            MicroBatches own;
            for (const auto& [hidden, padding] : batches)
                own.push_back({part_of(hidden, grid, r), part_of(padding, grid, r)});
            differ += !BitwiseEqual(alone(c, own).expert_bias, expected);
        }
        EXPECT_EQ(differ > 0, grid.world() > 1);
        for (const Outcome& rank : over_ranks(c, grid, batches))
            EXPECT_TRUE(BitwiseEqual(rank.expert_bias, expected));
    }
}

// A rank's tokens have the noise that they would have had on one rank.
TEST_P(RanksLossesTest, JitterBelongsToTheTokens) {
    MoEConfig c = config({"global_aux_loss"}, {0.5});
    c.moe_input_jitter_eps = 0.5;
    for (const Grid& grid : kGrids) {
        SCOPED_TRACE(testing::Message() << grid.tp << grid.cp << grid.dp);
        const MicroBatch batch = random_batch(grid);
        expect_parts_of(alone(c, {batch}), over_ranks(c, grid, {batch}), grid,
                        {"global_load_balancing_loss"});
    }
}

// A quantile is that of whole sequences, wherever they are cut; of replicas it is the
// mean.
TEST_P(RanksLossesTest, QuantilesAreThoseOfWholeSequences) {
    MoEConfig c = config({"quantile_balancing"}, {0.0});
    for (const Grid& grid : kGrids) {
        SCOPED_TRACE(testing::Message() << grid.tp << grid.cp << grid.dp);
        const MicroBatches batches = {random_batch(grid, 7), random_batch(grid, 8)};
        // Without a memory what comes out is linear in what goes in
        Tensor expected;
        for (int d = 0; d < grid.dp; ++d) {
            MicroBatches of_replica;
            for (const auto& [hidden, padding] : batches)
                of_replica.push_back({block(hidden, 0, kSeq, d * kBatch, kBatch), {}});
            add(expected, alone(c, of_replica).qb_beta);
        }
        for (std::int64_t e = 0; e < kExperts; ++e) expected.data<double>()[e] /= grid.dp;
        for (const Outcome& rank : over_ranks(c, grid, batches))
            EXPECT_TRUE(Close(rank.qb_beta, expected, 1e-6));
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, RanksLossesTest,
                         testing::ValuesIn(on_ranks(router_suppliers())), instance_name);

}  // namespace
}  // namespace moe::test
