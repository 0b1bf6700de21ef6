// A router of bf16: what it rounds, and whom it then chooses, in every tier. That the
// values are Megatron's own is golden_test.cpp's.

#include <algorithm>
#include <cmath>
#include <functional>

#include "cli/compare/given.h"
#include "core/router_rounding.h"
#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

struct Bf16RouterCase {
    const char* name;
    std::function<void(MoEConfig&)> set;
};

const std::vector<Bf16RouterCase>& bf16_router_cases() {
    static const std::vector<Bf16RouterCase> cases = {
        {"softmax", [](MoEConfig&) {}},
        {"pre_softmax_with_bias",
         [](MoEConfig& c) {
             c.moe_router_pre_softmax = true;
             c.add_bias_linear = true;
         }},
        {"fused_with_losses",
         [](MoEConfig& c) {
             c = dropless(rich_config());
             c.moe_router_dtype.reset();
             c.moe_router_fusion = true;
         }},
        {"unfused_dropping",
         [](MoEConfig& c) {
             c = rich_config();
             c.moe_router_dtype.reset();
         }},
        {"padded",
         [](MoEConfig& c) {
             c.moe_expert_capacity_factor = 0.8;
             c.moe_pad_expert_input_to_capacity = true;
         }},
        {"sinkhorn",
         [](MoEConfig& c) {
             c.moe_router_load_balancing_type = {"sinkhorn"};
             c.moe_z_loss_coeff = 0.01;
         }},
        {"sinkhorn_of_one",
         [](MoEConfig& c) {
             c.moe_router_load_balancing_type = {"sinkhorn"};
             c.moe_router_topk = 1;
         }},
        {"quantile_balancing",
         [](MoEConfig& c) {
             c.moe_router_load_balancing_type = {"quantile_balancing"};
             c.num_moe_experts = 9;
         }},
        {"jitter", [](MoEConfig& c) { c.moe_input_jitter_eps = 0.2; }},
        {"random_logits", [](MoEConfig& c) { c.moe_router_force_load_balancing = true; }},
        {"fused_by_token_ids",
         [](MoEConfig& c) {
             c.moe_router_hash_vocab_size = 17;
             c.moe_router_score_function = "sqrtsoftplus";
             c.moe_router_fusion = true;
         }},
    };
    return cases;
}

/// A tier's router of bf16, and all else of its own in the dtype that it has.
ModuleSpec with_bf16_router(const std::string& tier) {
    const DType dtype = tier == "optimized_gpu" ? DType::bf16 : DType::f32;
    ModuleSpec spec = ModuleSpec::uniform({tier, dtype});
    spec.router.dtype = DType::bf16;
    return spec;
}

class Bf16Router : public testing::TestWithParam<std::tuple<std::string, std::size_t>> {
  protected:
    Bf16Router() : config_(small_config(kHidden, 10, 3, 13)) {
        bf16_router_cases()[std::get<1>(GetParam())].set(config_);
        config_.finalize();
    }
    RunContext context(Observer& observer) const {
        return {.observer = &observer,
                .token_ids = by_sequence(random_ids(config_, kShape[0] * kShape[1], 3),
                                         kShape[0], kShape[1])};
    }
    LayerRun run(const ModuleSpec& spec) const {
        MoELayer layer(config_, spec, random_parameters(config_, 7));
        LayerRun result;
        const RunContext given = context(result.values);
        const Tensor hidden = random_tensor(kShape, 1),
                     doutput = random_tensor(kShape, 2);
        auto forward = layer.forward(hidden, {}, given);
        result.output = forward.output;
        result.losses = forward.losses.read();
        result.gradients = layer.backward(doutput, forward.saved, given);
        return result;
    }
    ModuleSpec spec() const { return with_bf16_router(std::get<0>(GetParam())); }

    MoEConfig config_;
};

std::int64_t count_rounded(const Tensor& values) {
    std::int64_t count = 0;
    for (const double value : to_doubles(values))
        count += double(float(BFloat16(float(value)))) != value;
    return count;
}

TEST_P(Bf16Router, HandsOnWhatBf16Holds) {
    const LayerRun got = run(spec());
    for (const char* name : {"logits", "topk_probs", "probs", "d_logits"})
        EXPECT_EQ(count_rounded(got.values.at(name)), 0) << name;
    // Gradients of the losses are rounded once, in the sum that d_logits is
    const Tensor& of_losses = got.values.at("d_logits_losses");
    if (config_.moe_z_loss_coeff) {
        EXPECT_GT(count_rounded(of_losses), 0);
    }
    // One of fp32 would not
    ModuleSpec more = spec();
    more.router.dtype = DType::f32;
    EXPECT_GT(count_rounded(run(more).values.at("probs")), 0);
}

TEST_P(Bf16Router, MakesWhatTheReferenceMakesOfOne) {
    const LayerRun got = run(spec()), expected = run(exact_spec(spec()));
    EXPECT_EQ(got.value("topk_idx"), expected.value("topk_idx"));
    EXPECT_EQ(got.value("routing_map"), expected.value("routing_map"));
    // Weights are the same numbers, but where a logit lies between two
    const Values p = got.value("probs"), q = expected.value("probs");
    std::int64_t differ = 0;
    for (std::size_t i = 0; i < p.size(); ++i) differ += p[i] != q[i];
    EXPECT_LE(differ, std::int64_t(p.size()) / 100);
    EXPECT_EQ(first_deviation(got, expected, DType::bf16), "");
    for (const auto& [name, loss] : expected.losses)
        EXPECT_NEAR(got.losses.at(name), loss, 1e-4 * loss) << name;
    for (const auto& [name, gradient] : expected.gradients.parameters)
        EXPECT_TRUE(Close(got.gradients.parameters.at(name), gradient,
                          tier_bound(DType::bf16, true)))
            << name;
}

/// Numbers that bf16 does not hold.
Tensor thirds_of(const Tensor& values) {
    std::vector<float> thirds;
    for (const double value : to_doubles(values)) thirds.push_back(float(value / 3.0));
    return Tensor::from<float>(values.shape(), thirds);
}

// What comes is rounded before all else: rounded beforehand, it makes the same bits.
TEST_P(Bf16Router, RoundsWhatItIsGiven) {
    const auto made_of = [&](DType beforehand) {
        const auto some = [&](const Tensor& values) {
            return RouterRounding(beforehand).of(thirds_of(values));
        };
        TensorMap parameters = random_parameters(config_, 7);
        for (auto& [name, values] : parameters)
            if (!is_buffer(name)) values = some(values);
        const auto router = find_tier("spec", spec().router.tier)
                                .make_router(config_, DType::bf16, parameters);
        const auto place = [&](const Tensor& values) {
            return transfer(values, router->placement());
        };
        ValueRecorder values;
        const auto forward =
            router->forward(place(some(random_tensor(kShape, 1))), {}, context(values));
        const Tensor& weights =
            forward.topk_probs.defined() ? forward.topk_probs : forward.probs;
        Tensor dhidden =
            place(Tensor::zeros({kShape[0] * kShape[1], kHidden}, DType::f32));
        TensorMap made;
        router->backward(dhidden, made, place(some(random_tensor(weights.shape(), 2))),
                         *forward.saved, context(values));
        made["dhidden"] = dhidden;
        for (const char* name : {"logits", "topk_probs", "d_logits"})
            made[name] = values.at(name);
        for (auto& [name, tensor] : made)
            tensor = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        return made;
    };
    const TensorMap got = made_of(DType::f32), expected = made_of(DType::bf16);
    for (const auto& [name, values] : expected)
        EXPECT_TRUE(BitwiseEqual(got.at(name), values)) << name;
}

std::vector<std::string> names_of_available_tiers() {
    std::vector<std::string> names;
    for (const ComponentSpec& supplier : available_suppliers())
        if (std::find(names.begin(), names.end(), supplier.tier) == names.end())
            names.push_back(supplier.tier);
    return names;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Bf16Router,
    testing::Combine(testing::ValuesIn(names_of_available_tiers()),
                     testing::Range<std::size_t>(0, bf16_router_cases().size())),
    [](const auto& info) {
        return std::get<0>(info.param) + "_" +
               bf16_router_cases()[std::get<1>(info.param)].name;
    });

// Logits that bf16 cannot tell apart tie, and the tie goes to the lower expert. Rounding
// keeps the order of all others.
TEST(Bf16RouterTies, GoToTheLowerExpert) {
    for (const std::string& tier : names_of_available_tiers()) {
        SCOPED_TRACE(tier);
        MoEConfig config = small_config(4, 3, 1, 5);
        config.moe_router_pre_softmax = true;
        config.finalize();
        TensorMap parameters = random_parameters(config, 1);
        // One token, (1, 2^-9, 0, 0): logits 1, 1 + 2^-9 and 1/2
        parameters["router.weight"] =
            Tensor::from<double>({3, 4}, {1, 0, 0, 0, 1, 1, 0, 0, 0.5, 0, 0, 0});
        const Tensor hidden = Tensor::from<double>({1, 1, 4}, {1, 0x1p-9, 0, 0});
        const auto chosen = [&](DType router) {
            ModuleSpec spec = with_bf16_router(tier);
            spec.router.dtype = router;
            ValueRecorder values;
            MoELayer(config, spec, parameters).forward(hidden, {}, {.observer = &values});
            return to_doubles(values.at("topk_idx"))[0];
        };
        EXPECT_EQ(chosen(DType::f32), 1.0);
        EXPECT_EQ(chosen(DType::bf16), 0.0);
    }
}

TEST(RouterRounding, LeavesARouterOfMoreAsItIs) {
    const Tensor values = Tensor::from<double>({3}, {1.0, 1.0 + 0x1p-9, -3.1});
    for (const DType dtype : {DType::f32, DType::f64})
        EXPECT_EQ(to_doubles(RouterRounding(dtype).of(values)), to_doubles(values));
    EXPECT_EQ(to_doubles(RouterRounding(DType::bf16).of(values)),
              (Values{1.0, 1.0, -3.09375}));
    EXPECT_FALSE(RouterRounding(DType::bf16).of(Tensor()).defined());
}

}  // namespace
}  // namespace moe::test
