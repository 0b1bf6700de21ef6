// Experts that somebody else gives: a table by the token's id, or a recorded run. They
// replace the router's choice, and nothing else.

#include <algorithm>
#include <cmath>

#include "core/given_experts.h"
#include "core/rng.h"
#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

/// (rows, K) i64: K different ones of E experts, in any order.
Tensor any_experts(std::int64_t rows, std::int64_t E, std::int64_t K, int seed) {
    MoEConfig config = small_config(E, E, K);
    config.moe_router_pre_softmax = true;  // K may be 1
    config.moe_router_hash_vocab_size = rows;
    config.finalize();
    return random_parameters(config, std::uint64_t(seed)).at(kTid2Eid);
}

/// i64, whose rows are `of` [rows[i]].
Tensor rows_of_table(const Tensor& table, const std::vector<std::int64_t>& rows) {
    const std::int64_t K = table.dim(1);
    std::vector<std::int64_t> values;
    for (const std::int64_t row : rows)
        values.insert(values.end(), table.data<std::int64_t>() + row * K,
                      table.data<std::int64_t>() + (row + 1) * K);
    return Tensor::from({std::int64_t(rows.size()), K}, values);
}

/// Seeded ids (B, S), and the same in the order of tokens, t = s B + b.
struct TokenIds {
    TokenIds(std::int64_t S, std::int64_t B, std::int64_t vocab) : in_order(S * B) {
        std::vector<std::int64_t> ids(S * B);
        for (std::int64_t b = 0; b < B; ++b)
            for (std::int64_t s = 0; s < S; ++s)
                ids[b * S + s] = in_order[s * B + b] =
                    Rng(3).below(b * S + s, std::uint32_t(vocab));
        by_sequence = Tensor::from({B, S}, ids);
    }
    Tensor by_sequence;
    std::vector<std::int64_t> in_order;
};

/// A router's function, and what it does to scores.
struct Rule {
    std::string function;
    bool pre;
    std::int64_t topk;
};

double score(const std::string& function, double x) {
    return function == "softmax"   ? std::exp(x)
           : function == "sigmoid" ? 1.0 / (1.0 + std::exp(-x))
                                   : std::sqrt(std::log1p(std::exp(x)));
}

/// The weights (T, E) by the formulas of docs/definitions.md.
Tensor weights_of(const Tensor& logits, const Tensor& experts, const Rule& rule,
                  double scale) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = rule.topk;
    const Values x = to_doubles(logits);
    Values probs(T * E);
    for (std::int64_t t = 0; t < T; ++t) {
        const auto* chosen = experts.data<std::int64_t>() + t * K;
        double total = 0.0;
        if (rule.function == "softmax" && rule.pre)
            for (std::int64_t e = 0; e < E; ++e) total += std::exp(x[t * E + e]);
        else
            for (std::int64_t k = 0; k < K; ++k)
                total += score(rule.function, x[t * E + chosen[k]]);
        if (rule.function != "softmax" && K == 1) total = 1.0;
        for (std::int64_t k = 0; k < K; ++k)
            probs[t * E + chosen[k]] =
                scale * score(rule.function, x[t * E + chosen[k]]) / total;
    }
    return Tensor::from({T, E}, probs);
}

// ------------------------------------------------------------------------- the router

class GivenExperts : public testing::TestWithParam<ComponentSpec> {
  protected:
    /// Its weight is the identity, so that hidden states (S, B, E) are logits.
    Router::Output route(MoEConfig config, const Tensor& logits, RunContext context,
                         TensorMap parameters = {}) {
        parameters["router.weight"] = identity_matrix(config.hidden_size);
        router_ = make_router(GetParam(), config, parameters);
        context.observer = &values_;
        return dense_forward(*router_, transfer(logits, router_->placement()), {},
                             context);
    }
    std::unique_ptr<Router> router_;
    ValueRecorder values_;
};

std::vector<MoEConfig> fused_and_not(MoEConfig config) {
    MoEConfig fused = config;
    fused.moe_router_fusion = true;
    return {config, fused};
}

TEST_P(GivenExperts, AreWeighedByTheirScores) {
    constexpr std::int64_t S = 11, B = 3, V = 7;
    for (const auto& [rule, E] :
         std::vector<std::pair<Rule, std::int64_t>>{{{"softmax", false, 2}, 5},
                                                    {{"softmax", false, 5}, 5},
                                                    {{"softmax", true, 3}, 33},
                                                    {{"softmax", true, 1}, 9},
                                                    {{"sigmoid", false, 1}, 7},
                                                    {{"sigmoid", false, 4}, 65},
                                                    {{"sqrtsoftplus", false, 3}, 130}}) {
        SCOPED_TRACE(rule.function + testing::PrintToString(E));
        const Tensor logits = random_tensor({S, B, E}, 1, 2.0);
        const Tensor table = any_experts(V, E, rule.topk, 2);
        const TokenIds ids(S, B, V);
        const Tensor experts = rows_of_table(table, ids.in_order);
        const Tensor expected =
            weights_of(logits.reshaped({S * B, E}), experts, rule, 2.5);
        MoEConfig config = small_config(E, E, rule.topk);
        config.moe_router_score_function = rule.function;
        config.moe_router_pre_softmax = rule.pre;
        config.moe_router_topk_scaling_factor = 2.5;
        config.moe_z_loss_coeff = 0.1;
        for (MoEConfig each : fused_and_not(config)) {
            each.moe_router_hash_vocab_size = V;
            const auto hashed =
                route(each, logits, {.token_ids = ids.by_sequence}, {{kTid2Eid, table}});
            EXPECT_EQ(to_doubles(values_.at("topk_idx")), to_doubles(experts));
            EXPECT_TRUE(Close(hashed.probs, expected, score_bound_of(GetParam())));
            Values map = to_doubles(expected);
            for (double& p : map) p = p > 0.0;
            EXPECT_EQ(to_doubles(hashed.routing_map), map);
            each.moe_router_hash_vocab_size.reset();
            each.moe_enable_routing_replay = true;
            const auto replayed = route(each, logits, {.target_topk_idx = experts});
            EXPECT_TRUE(BitwiseEqual(replayed.probs, hashed.probs));
            EXPECT_TRUE(BitwiseEqual(replayed.routing_map, hashed.routing_map));
        }
    }
}

// A softmax over the chosen must not overflow where the first of them is not the largest.
TEST_P(GivenExperts, NeedNotBeginWithTheLargest) {
    MoEConfig config = small_config(4, 4, 2);
    config.moe_enable_routing_replay = true;
    const Tensor logits = Tensor::from<float>({1, 1, 4}, {-300, 1, 2, 300});
    for (const MoEConfig& each : fused_and_not(config)) {
        const auto output =
            route(each, logits,
                  {.target_topk_idx = Tensor::from<std::int32_t>({1, 2}, {0, 3})});
        EXPECT_EQ(to_doubles(output.probs), (Values{0, 0, 0, 1}));
        EXPECT_EQ(to_doubles(output.routing_map), (Values{1, 0, 0, 1}));
    }
}

// Scores of the losses, and so their values and gradients, know nothing of the choice.
TEST_P(GivenExperts, LeaveTheLossesAlone) {
    constexpr std::int64_t S = 9, B = 2, E = 6, K = 2;
    const Tensor logits = random_tensor({S, B, E}, 4);
    MoEConfig config = small_config(E, E, K);
    config.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.5, 0.25};
    config.moe_z_loss_coeff = 0.125;
    config.moe_enable_routing_replay = true;
    for (const MoEConfig& each : fused_and_not(config)) {
        Values gradients[2];
        Losses losses[2];
        for (const int given : {0, 1}) {
            const auto output = route(
                each, logits,
                {.target_topk_idx = given ? any_experts(S * B, E, K, 5) : Tensor()});
            losses[given] = output.losses.read();
            Tensor dhidden =
                transfer(Tensor::zeros({S * B, E}, DType::f32), router_->placement());
            TensorMap ignored;
            dense_backward(*router_, dhidden, ignored,
                           transfer(Tensor::zeros({S * B, E}, DType::f32),
                                    probs_placement(router_->placement())),
                           *output.saved, {});
            gradients[given] = to_doubles(dhidden);
        }
        EXPECT_EQ(losses[0], losses[1]);
        EXPECT_EQ(losses[0].size(), 3u);
        EXPECT_EQ(gradients[0], gradients[1]);
    }
}

TEST_P(GivenExperts, TakeNoTokens) {
    MoEConfig config = small_config(4, 4, 2);
    config.moe_router_hash_vocab_size = 3;
    const auto output = route(config, Tensor::zeros({0, 2, 4}, DType::f32),
                              {.token_ids = Tensor::zeros({2, 0}, DType::i64)},
                              {{kTid2Eid, any_experts(3, 4, 2, 1)}});
    EXPECT_EQ(output.probs.shape(), (Shape{0, 4}));
}

TEST_P(GivenExperts, AreChecked) {
    constexpr std::int64_t S = 3, B = 2, E = 4, K = 2;
    const Tensor logits = random_tensor({S, B, E}, 4);
    MoEConfig hash = small_config(E, E, K), replay = hash;
    hash.moe_router_hash_vocab_size = 5;
    replay.moe_enable_routing_replay = true;
    const auto refuses_ids = [&](const Tensor& ids, const std::string& words) {
        return Rejects(
            [&] {
                route(hash, logits, {.token_ids = ids},
                      {{kTid2Eid, any_experts(5, E, K, 1)}});
            },
            {words});
    };
    EXPECT_TRUE(refuses_ids({},
                            "token_ids = absent: required with "
                            "moe_router_hash_vocab_size"));
    EXPECT_TRUE(refuses_ids(Tensor::zeros({S, B}, DType::i64),
                            "token_ids = int64 (3, 2): must be int64 or int32 (B, S) = "
                            "(2, 3)"));
    EXPECT_TRUE(
        refuses_ids(Tensor::zeros({B, S}, DType::f32), "token_ids = fp32 (2, 3): "));
    EXPECT_TRUE(refuses_ids(Tensor::from<std::int64_t>({B, S}, {0, 4, 0, 0, 5, 0}),
                            "token_ids[1, 1] = 5: must be from 0 to 4"));
    EXPECT_TRUE(refuses_ids(Tensor::from<std::int64_t>({B, S}, {0, 4, -1, 0, 4, 0}),
                            "token_ids[0, 2] = -1: "));

    const auto refuses_target = [&](const Tensor& target, const std::string& words) {
        return Rejects([&] { route(replay, logits, {.target_topk_idx = target}); },
                       {words});
    };
    const auto with = [&](std::int32_t last) {
        return Tensor::from<std::int32_t>({S * B, K},
                                          {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, last});
    };
    EXPECT_TRUE(refuses_target(Tensor::zeros({S, K}, DType::i64),
                               "target_topk_idx = int64 (3, 2): must be int64 or int32 "
                               "(N, K) = (6, 2)"));
    EXPECT_TRUE(refuses_target(with(4), "target_topk_idx[5, 1] = 4: must be an expert"));
    EXPECT_TRUE(refuses_target(with(-1),
                               "target_topk_idx[5, 1] = -1: must be an expert, "
                               "from 0 to 3"));
    EXPECT_TRUE(refuses_target(with(2),
                               "target_topk_idx[5, 1] = 2: must not name an "
                               "expert of its row again"));
    // Not only beside each other
    MoEConfig three = small_config(E, E, 3);
    three.moe_enable_routing_replay = true;
    EXPECT_TRUE(Rejects(
        [&] {
            route(three, random_tensor({1, 1, E}, 4),
                  {.target_topk_idx = Tensor::from<std::int64_t>({1, 3}, {2, 0, 2})});
        },
        {"target_topk_idx[0, 2] = 2: must not name"}));
    EXPECT_NO_THROW(route(replay, logits, {.target_topk_idx = with(0)}));
    replay.moe_enable_routing_replay = false;
    EXPECT_TRUE(refuses_target(with(0),
                               "target_topk_idx = (6, 2): needs "
                               "moe_enable_routing_replay"));
}

INSTANTIATE_TEST_SUITE_P(Tiers, GivenExperts, testing::ValuesIn(router_suppliers()),
                         instance_name);

// -------------------------------------------------------------------------- the layer

class GivenExpertsLayer : public LayerTest {
  protected:
    static LayerRun run_given(MoEConfig config, const TensorMap& parameters,
                              RunContext given,
                              const ComponentSpec& supplier = GetParam()) {
        config.finalize();
        MoELayer subject(config, ModuleSpec::uniform(supplier), parameters);
        LayerRun result;
        given.observer = &result.values;
        auto forward = subject.forward(random_tensor(kGivenShape, 1), {}, given);
        result.output = forward.output;
        result.losses = forward.losses.read();
        result.gradients =
            subject.backward(random_tensor(kGivenShape, 2), forward.saved, given);
        return result;
    }
    static constexpr std::int64_t kTokens = 13 * 3;
    inline static const Shape kGivenShape = {13, 3, kHidden};
};

/// Layers whose routers differ in all that follows a choice.
std::vector<MoEConfig> routers() {
    MoEConfig plain = small_config(kHidden, 10, 3, 13);
    plain.moe_router_dtype = "fp32";
    plain.moe_router_fusion = true;
    MoEConfig pre = plain, rich = rich_config();
    pre.moe_router_fusion = false;
    pre.moe_router_pre_softmax = true;
    pre.moe_router_topk_scaling_factor = 1.5;
    rich.moe_token_drop_policy = "position";
    return {plain, pre, rich};
}

// Its own choice, played back: in every tier the same bits.
TEST_P(GivenExpertsLayer, ReplayTheRecordedRunToTheBit) {
    NEEDS_DEVICE();
    for (MoEConfig each : routers()) {
        const TensorMap parameters = parameters_of(each);
        const LayerRun recorded = run_given(each, parameters, {});
        each.moe_enable_routing_replay = true;
        const LayerRun replayed = run_given(
            each, parameters, {.target_topk_idx = recorded.values.at("topk_idx")});
        EXPECT_TRUE(BitwiseEqual(replayed.output, recorded.output));
        EXPECT_EQ(replayed.losses, recorded.losses);
        EXPECT_TRUE(BitwiseEqual(replayed.gradients.hidden_states,
                                 recorded.gradients.hidden_states));
        for (const auto& [name, gradient] : recorded.gradients.parameters)
            EXPECT_TRUE(BitwiseEqual(replayed.gradients.parameters.at(name), gradient))
                << name;
    }
}

// Experts that nobody would choose: every tier makes the same of them.
TEST_P(GivenExpertsLayer, AgreeWithTheReference) {
    NEEDS_DEVICE();
    for (MoEConfig each : routers()) {
        each.moe_enable_routing_replay = true;
        const TensorMap parameters = parameters_of(each);
        const RunContext given = {.target_topk_idx = any_experts(kTokens, 10, 3, 6)};
        const LayerRun got = run_given(each, parameters, given);
        const LayerRun expected =
            run_given(each, parameters, given, {"reference_cpu", DType::f64});
        expect_close(got, expected);
        EXPECT_EQ(first_deviation(got, expected, GetParam().dtype), "");
        EXPECT_NE(to_doubles(got.values.at("topk_idx")),
                  to_doubles(run_given(each, parameters, {}).values.at("topk_idx")));
    }
}

// A table is a target that every token brings along.
TEST_P(GivenExpertsLayer, ComeByTokenIds) {
    NEEDS_DEVICE();
    MoEConfig each = routers()[0];
    each.moe_router_score_function = "sqrtsoftplus";
    each.moe_router_topk_scaling_factor = 1.5;
    each.moe_shared_expert_intermediate_size = 9;
    const TokenIds ids(kGivenShape[0], kGivenShape[1], 31);
    each.moe_router_hash_vocab_size = 31;
    TensorMap parameters = parameters_of(each);
    const LayerRun hashed = run_given(each, parameters, {.token_ids = ids.by_sequence});
    EXPECT_EQ(hashed.gradients.parameters.count(kTid2Eid), 0u);
    const Tensor experts = rows_of_table(parameters.at(kTid2Eid), ids.in_order);
    each.moe_router_hash_vocab_size.reset();
    each.moe_enable_routing_replay = true;
    const LayerRun replayed = run_given(each, parameters, {.target_topk_idx = experts});
    EXPECT_TRUE(BitwiseEqual(hashed.output, replayed.output));
    EXPECT_TRUE(
        BitwiseEqual(hashed.gradients.hidden_states, replayed.gradients.hidden_states));
    // Where both are given, the recorded run has its way
    each.moe_router_hash_vocab_size = 31;
    const Tensor others = any_experts(kTokens, 10, 3, 8);
    EXPECT_EQ(
        to_doubles(run_given(each, parameters,
                             {.token_ids = ids.by_sequence, .target_topk_idx = others})
                       .values.at("topk_idx")),
        to_doubles(others));
}

INSTANTIATE_TEST_SUITE_P(Tiers, GivenExpertsLayer,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
