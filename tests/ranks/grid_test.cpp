// The layer over grids of ranks: the same layer as on one rank, with the rows where a
// loop that knows everything puts them. Losses over ranks are in the golden cases.

#include <cmath>

#include "cli/compare/closeness.h"
#include "cli/golden/golden.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/sharding.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeqLength = 3, kBatch = 2, kHidden = 13, kExperts = 8;

MoEConfig gated_config() {
    MoEConfig config = small_config(kHidden, kExperts, 3, 12);
    config.moe_router_dtype = "fp64";  // every precision chooses the same experts
    config.moe_permute_fusion = true;
    return config;
}

using GridCase = std::tuple<Grid, std::string, ComponentSpec>;

std::vector<GridCase> grid_cases() {
    std::vector<GridCase> cases;
    for (const Grid& grid : grids())
        for (const char* dispatcher : kDispatcherTypes) {
            try {
                on_grid(gated_config(), grid, dispatcher);
            } catch (const InputError&) {
                continue;  // e.g. flex on a single rank of tp_ep
            }
            // Emulated tensor cores take their time: every kind of exchange once
            const std::string name = to_string(grid);
            const bool is_few = name == "tp1_cp1_ep2_etp1_w2" ||
                                name == "tp2_cp1_ep2_etp2_w4" ||
                                name == "tp1_cp1_ep2_etp1_w6";
            for (const ComponentSpec& supplier : grid_suppliers(dispatcher))
                if (is_few || supplier.tier != "optimized_gpu")
                    cases.emplace_back(grid, dispatcher, supplier);
        }
    return cases;
}

std::string case_name(const testing::TestParamInfo<GridCase>& info) {
    const auto& [grid, dispatcher, supplier] = info.param;
    return to_string(grid) + "_" + dispatcher + "_" + supplier.tier + "_" +
           to_string(supplier.dtype);
}

class RankGrid : public testing::TestWithParam<GridCase> {
  protected:
    const Grid& grid() const { return std::get<0>(GetParam()); }
    const std::string& dispatcher() const { return std::get<1>(GetParam()); }
    const ComponentSpec& supplier() const { return std::get<2>(GetParam()); }
    MoEConfig config_of(const MoEConfig& config) const {
        return on_grid(config, grid(), dispatcher());
    }
    /// (S, B, H) for every rank, each with other numbers.
    std::vector<Tensor> random_tokens(std::uint64_t seed) const {
        std::vector<Tensor> tokens;
        for (int r = 0; r < grid().world; ++r)
            tokens.push_back(random_tensor({kSeqLength, kBatch, kHidden}, seed + r));
        return tokens;
    }
    std::vector<RankRun> run(const MoEConfig& config, const TensorMap& parameters,
                             const std::vector<Tensor>& hidden,
                             const std::vector<Tensor>& doutput) const {
        return run_on_ranks(config, supplier(), parameters, hidden, doutput);
    }
};

TEST_P(RankGrid, IsTheLayerOnOneRank) {
    const MoEConfig config = config_of(gated_config());
    const TensorMap parameters =
        random_parameters(distributed::single_rank_config(config), 7);
    const auto hidden = random_tokens(100), doutput = random_tokens(200);
    const auto runs = run(config, parameters, hidden, doutput);
    const RankRun whole =
        run_alone(config, parameters, concatenate(hidden), concatenate(doutput));
    expect_whole(config, runs, whole, bound_of(supplier()));
    // Shown as (T, E), also where the dispatcher takes (T, K)
    std::vector<Tensor> dprobs;
    for (const RankRun& rank : runs) dprobs.push_back(rank.values.at("d_probs"));
    EXPECT_TRUE(Close(concatenate(dprobs), whole.values.at("d_probs"),
                      supplier().dtype == DType::bf16 ? 1e-2 : bound_of(supplier())));
}

// ------------------------------------------------------------------- to the last bit

/// Entries -1, 0 and 1 times `unit`, half of them 0.
Tensor small_numbers(const Shape& shape, std::uint64_t seed, double unit) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(seed);
    const double values[] = {0.0, 1.0, 0.0, -1.0};
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] = float(unit * values[rng.below(i, 4)]);
    return tensor;
}

/// Tokens whose first E columns are 2 for two experts and 0 for all others.
Tensor tokens_for_two_experts(std::uint64_t seed) {
    Tensor tokens = small_numbers({kSeqLength, kBatch, kHidden}, seed, 0.5);
    const Rng rng(seed, 1);
    for (std::int64_t t = 0; t < kSeqLength * kBatch; ++t) {
        float* token = tokens.data<float>() + t * kHidden;
        std::fill_n(token, kExperts, 0.0f);
        const std::uint32_t first = rng.below(t, kExperts);
        token[first] = token[(first + 1 + rng.below(t + 1000, 7)) % kExperts] = 2.0f;
    }
    return tokens;
}

// With logits 2 and 2 both probabilities are exactly one half, and no sum of small
// multiples of a power of two rounds: in no order, on no rank, in no precision.
TEST_P(RankGrid, IsItBitForBitWhereNoSumRounds) {
    MoEConfig any = gated_config();
    any.moe_router_topk = 2;
    any.gated_linear_unit = false;
    any.activation_func = "squared_relu";
    const MoEConfig config = config_of(any);
    TensorMap parameters = random_parameters(distributed::single_rank_config(config), 7);
    parameters["router.weight"] = Tensor::zeros({kExperts, kHidden}, DType::f32);
    for (std::int64_t e = 0; e < kExperts; ++e)
        parameters["router.weight"].data<float>()[e * kHidden + e] = 1.0f;
    for (const char* name : {"experts.linear_fc1.weight", "experts.linear_fc2.weight"})
        parameters[name] = small_numbers(parameters[name].shape(), 8, 1.0);
    std::vector<Tensor> hidden, doutput;
    for (int r = 0; r < grid().world; ++r) {
        hidden.push_back(tokens_for_two_experts(300 + r));
        doutput.push_back(small_numbers({kSeqLength, kBatch, kHidden}, 400 + r, 1.0));
    }
    const RankRun whole =
        run_alone(config, parameters, concatenate(hidden), concatenate(doutput));
    for (const auto& [name, gradient] : whole.gradients.parameters)
        EXPECT_FALSE(Close(gradient, Tensor::zeros(gradient.shape(), DType::f64), 0))
            << name;
    // bf16 has no room for all bits of the gradients
    const double bound = supplier().dtype == DType::bf16 ? bound_of(supplier()) : 0.0;
    expect_whole(config, run(config, parameters, hidden, doutput), whole, bound);
}

// ------------------------------------------------------------------ who holds which row

template <typename Get>
std::vector<Tensor> of_all(const std::vector<RankRun>& runs, Get&& get) {
    std::vector<Tensor> result;
    for (const RankRun& run : runs) result.push_back(get(run));
    return result;
}

Tensor counts(const std::vector<std::int64_t>& values) {
    return Tensor::from({std::int64_t(values.size())}, values);
}

TEST_P(RankGrid, HoldsTheRowsThatAnOracleSays) {
    const MoEConfig config = config_of(gated_config());
    const TensorMap parameters =
        random_parameters(distributed::single_rank_config(config), 9);
    const auto hidden = random_tokens(500);
    const auto runs = run(config, parameters, hidden, random_tokens(600));
    const auto holdings = who_holds_what(config, of_all(runs, [](const RankRun& run) {
                                             return run.values.at("routing_map");
                                         }));
    const auto probs = of_all(runs, [&](const RankRun& run) {
        return transfer(run.values.at("probs"),
                        probs_placement({MemorySpace::host, supplier().dtype}));
    });
    for (std::size_t r = 0; r < runs.size(); ++r) {
        const Holdings& mine = holdings[r];
        const auto expect_equal = [&](const char* name, const Tensor& expected) {
            EXPECT_TRUE(Close(runs[r].values.at(name), expected, 0.0))
                << "rank " << r << ", " << name;
        };
        expect_equal("tokens_per_expert", counts(mine.tokens_per_expert));
        expect_equal("dispatched_hidden_states", rows_of(mine.dispatched, hidden));
        expect_equal("dispatched_probs", probs_of(mine.dispatched, probs));
        if (dispatcher() == "alltoall") {
            expect_equal("sent_hidden_states", rows_of(mine.sent, hidden));
            expect_equal("received_hidden_states", rows_of(mine.received, hidden));
            expect_equal("input_splits", counts(mine.input_splits));
            expect_equal("output_splits", counts(mine.output_splits));
            expect_equal("output_splits_tp", counts(mine.output_splits_tp));
        } else if (dispatcher() == "allgather") {
            const int group = grid().ep * grid().etp, first = int(r) / group * group;
            const Tensor all =
                concatenate({hidden.begin() + first, hidden.begin() + first + group});
            expect_equal("sent_hidden_states",
                         hidden[r].reshaped({kSeqLength * kBatch, kHidden}));
            expect_equal("received_hidden_states",
                         all.reshaped({group * kSeqLength * kBatch, kHidden}));
        }
    }
}

// --------------------------------------------------------------------------- invariants

/// y = Σ_k p_k FFN_k(x) for every token of (S, B, H), expert by expert.
Tensor dense_loop(const MoEConfig& config, const TensorMap& parameters,
                  const Tensor& hidden, const Tensor& token_probs) {
    const std::int64_t H = config.hidden_size, F = config.ffn();
    const auto x = to_doubles(hidden), probs = to_doubles(token_probs);
    const auto fc1 = to_doubles(parameters.at("experts.linear_fc1.weight"));
    const auto fc2 = to_doubles(parameters.at("experts.linear_fc2.weight"));
    const std::int64_t E = config.num_experts();
    std::vector<double> y(x.size());
    for (std::int64_t i = 0; i < std::int64_t(probs.size()); ++i) {
        const std::int64_t t = i / E, e = i % E;
        for (std::int64_t f = 0; probs[i] != 0.0 && f < F; ++f) {
            double gate = 0.0, up = 0.0;
            for (std::int64_t h = 0; h < H; ++h) {
                gate += fc1[(e * 2 * F + f) * H + h] * x[t * H + h];
                up += fc1[(e * 2 * F + F + f) * H + h] * x[t * H + h];
            }
            const double activated = gate / (1.0 + std::exp(-gate)) * up;
            for (std::int64_t h = 0; h < H; ++h)
                y[t * H + h] += probs[i] * fc2[(e * H + h) * F + f] * activated;
        }
    }
    return Tensor::from(hidden.shape(), y);
}

TEST_P(RankGrid, SumsWhatTheExpertsSay) {
    const MoEConfig config = config_of(gated_config());
    const TensorMap parameters =
        random_parameters(distributed::single_rank_config(config), 10);
    const auto hidden = random_tokens(700);
    const auto runs = run(config, parameters, hidden, hidden);
    for (std::size_t r = 0; r < runs.size(); ++r) {
        const Tensor& probs = runs[r].values.at("probs");
        EXPECT_TRUE(Close(runs[r].output,
                          dense_loop(distributed::single_rank_config(config), parameters,
                                     hidden[r], probs),
                          bound_of(supplier())))
            << "rank " << r;
        std::int64_t routed = 0;  // Σ_e n_e = T K on every rank
        for (double p : to_doubles(runs[r].values.at("routing_map"))) routed += p != 0.0;
        EXPECT_EQ(routed, kSeqLength * kBatch * config.moe_router_topk);
    }
}

// Each of the K experts gives back its share, and so does each of an expert's shards.
TEST_P(RankGrid, GivesBackWhatNoExpertChanges) {
    constexpr std::int64_t T = 7;
    for (std::int64_t K : {1, 2, 4}) {
        MoEConfig any = gated_config();
        any.moe_router_topk = K;
        any.moe_router_pre_softmax = true;  // as K = 1 needs
        any.moe_permute_fusion = K == 2;
        const MoEConfig config = config_of(any);
        distributed::run_ranks(grid().world, [&](distributed::Communicator& world) {
            const auto groups = distributed::make_process_groups(world, config);
            const auto subject = find_tier("tier", supplier().tier)
                                     .make_dispatcher(config, supplier().dtype, groups);
            const auto place = [&](const Tensor& tensor) {
                return transfer(tensor, subject->placement());
            };
            const std::int64_t rank = world.rank();
            Tensor map = Tensor::zeros({T, kExperts}, DType::u8);
            for (std::int64_t t = 0; t < T; ++t)
                for (std::int64_t k = 0; k < K; ++k)
                    map.data<std::uint8_t>()[t * kExperts + (rank + t + 3 * k) % 8] = 1;
            const Tensor hidden = random_tensor({T, kHidden}, 800 + rank);
            Tensor probs = Tensor::zeros({T, kExperts}, DType::f32);
            for (std::int64_t i = 0; i < map.numel(); ++i)
                probs.data<float>()[i] = map.data<std::uint8_t>()[i] ? 1.0f / K : 0.0f;

            const auto sent = subject->dispatch(
                place(hidden), transfer(probs, probs_placement(subject->placement())),
                place(map), {});
            std::int64_t N = 0;  // there may be room for more
            for (double count : to_doubles(sent.tokens_per_expert)) N += count;
            const Tensor dispatched = sent.rows.plain().first(N);
            std::vector<double> shares = to_doubles(dispatched);
            for (double& value : shares) value /= double(K * grid().etp);
            const Tensor rows = place(Tensor::from(dispatched.shape(), shares));
            EXPECT_TRUE(Close(subject->combine(rows, {}, *sent.saved, {}), hidden, 0.0))
                << "rank " << rank << ", K = " << K;
            EXPECT_TRUE(Close(
                subject->dispatch_backward(rows, sent.row_probs.first(N), *sent.saved, {})
                    .dhidden,
                hidden, 0.0))
                << "rank " << rank << ", K = " << K;
            for (double p : to_doubles(sent.row_probs.first(N))) EXPECT_EQ(p, 1.0 / K);
        });
    }
}

INSTANTIATE_TEST_SUITE_P(Grids, RankGrid, testing::ValuesIn(grid_cases()), case_name);

// ------------------------------------------------------- other widths, other layouts

class FewRankGrids : public RankGrid {
  protected:
    std::vector<RankRun> expect_the_layer_on_one_rank(const MoEConfig& any) const {
        const MoEConfig config = config_of(any);
        const TensorMap parameters =
            random_parameters(distributed::single_rank_config(config), 7);
        const auto hidden = random_tokens(100), doutput = random_tokens(200);
        const auto runs = run(config, parameters, hidden, doutput);
        const RankRun whole =
            run_alone(config, parameters, concatenate(hidden), concatenate(doutput));
        expect_whole(config, runs, whole, tier_bound(supplier().dtype, true));
        return runs;
    }
};

// What travels and what experts see is ℓ wide.
TEST_P(FewRankGrids, AreTheLayerWithALatentSize) {
    MoEConfig config = gated_config();
    config.moe_latent_size = 5;
    config.moe_shared_expert_intermediate_size = 8;
    for (const RankRun& rank : expect_the_layer_on_one_rank(config))
        if (dispatcher() != "flex") {
            EXPECT_EQ(rank.values.at("sent_hidden_states").dim(1), 5);
        }
}

// A shard of gates and ups in turn is a part of the rows as they lie.
TEST_P(FewRankGrids, AreTheLayerOfInterleavedWeights) {
    MoEConfig config = gated_config();
    config.moe_mlp_glu_interleave_size = 3;
    config.moe_shared_expert_intermediate_size = 8;
    config.moe_shared_expert_glu_interleave_size = 2;
    expect_the_layer_on_one_rank(config);
}

std::vector<GridCase> few_grid_cases() {
    std::vector<GridCase> cases;
    for (const Grid& grid : {Grid{1, 1, 2, 1, 2}, {2, 1, 2, 2, 4}, {4, 1, 1, 4, 4}})
        for (const char* dispatcher : kDispatcherTypes)
            for (const ComponentSpec& supplier : grid_suppliers(dispatcher))
                cases.emplace_back(grid, dispatcher, supplier);
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Grids, FewRankGrids, testing::ValuesIn(few_grid_cases()),
                         case_name);

}  // namespace
}  // namespace moe::test
