// What every operation of the layer must move at the least, counted by hand.

#include "core/floors.h"

#include <map>
#include <set>
#include <sstream>

#include "tests/support.h"

namespace moe::test {
namespace {

/// Everything that moves data is on: T=7, N=14, H=4, E=3, K=2, F=5, Fs=3.
MoEConfig costly_config(bool gated = true) {
    MoEConfig c = small_config(4, 3, 2, 5);
    c.gated_linear_unit = gated;
    c.moe_shared_expert_intermediate_size = 3;
    c.moe_expert_capacity_factor = 1.0;
    c.moe_router_load_balancing_type = {"aux_loss"};
    c.moe_aux_loss_coeff = {0.5};
    c.finalize();
    return c;
}
const StepSizes kSizes{.num_tokens = 7, .num_rows = 14};
const Formats kBf16{.dtype = DType::bf16};
const Formats kChosen{.dtype = DType::bf16, .routing = RoutingForm::chosen};

Floors floors(const MoEConfig& config = costly_config(), const Formats& formats = kBf16) {
    return {config, kSizes, formats};
}

/// Numbers by what they are, and bytes of metadata.
struct Counted {
    std::int64_t activations = 0, logits = 0, probs = 0, metadata = 0;
    std::int64_t bytes(const Formats& f) const {
        return activations * std::int64_t(size_of(f.dtype)) +
               logits * std::int64_t(size_of(f.logits)) +
               probs * std::int64_t(size_of(f.probs));
    }
};
testing::AssertionResult Moves(const Floor& floor, const Counted& counted,
                               const Formats& formats = kBf16) {
    if (floor.bytes == counted.bytes(formats) && floor.metadata == counted.metadata)
        return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << floor.formula << " = " << floor.bytes << " bytes and " << floor.metadata
           << " of metadata, not " << counted.bytes(formats) << " and "
           << counted.metadata;
}

// TH = 28, NH = 56, EH = 12, TE = 21, TK = 14, EFH = 60, NF = 70, FsH = 12; maps have a
// byte, ids eight: a row map has 8 (N + E) = 136, the counts of the experts 24.
const std::map<Step, Counted> kGated = {
    {Step::shared_experts, {92}},
    {Step::gating, {40, 21}},
    {Step::routing, {0, 21, 21, 21}},
    {Step::token_dropping, {0, 0, 42, 42}},
    {Step::auxiliary_losses, {0, 21}},
    {Step::dispatch, {84, 0, 21 + 14, 21 + 136}},
    {Step::fc1, {316, 0, 0, 24}},
    {Step::activation, {210, 0, 14}},
    {Step::fc2, {186, 0, 0, 24}},
    {Step::combine, {112, 0, 0, 136}},
    {Step::combine_backward, {84, 0, 0, 136}},
    {Step::fc2_backward, {316, 0, 0, 24}},
    {Step::activation_backward, {350, 0, 28}},
    {Step::fc1_backward, {492, 0, 0, 24}},
    {Step::dispatch_backward, {84, 0, 14 + 21, 136}},
    {Step::auxiliary_losses_backward, {0, 42}},
    {Step::token_dropping_backward, {0, 0, 42, 21}},
    {Step::routing_backward, {0, 63, 21, 21}},
    {Step::gating_backward, {108, 21}},
    {Step::shared_experts_backward, {184}},
};

TEST(Floors, CountEachOperandOnceInItsOwnType) {
    EXPECT_EQ(kGated.size(), std::size_t(kNumSteps));
    Formats f64{.dtype = DType::f64, .logits = DType::f64, .probs = DType::f64};
    for (const auto& [step, counted] : kGated)
        for (const Formats& formats : {kBf16, Formats{}, f64})
            EXPECT_TRUE(
                Moves(floors(costly_config(), formats).step(step), counted, formats))
                << title(step);
}

TEST(Floors, WithoutAGateW1HasHalfItsRows) {
    std::map<Step, Counted> plain = kGated;
    plain[Step::shared_experts] = {80};
    plain[Step::fc1].activations = 186;
    plain[Step::activation].activations = 140;
    plain[Step::activation_backward].activations = 210;
    plain[Step::fc1_backward].activations = 302;
    plain[Step::shared_experts_backward] = {160};
    for (const auto& [step, counted] : plain)
        EXPECT_TRUE(Moves(floors(costly_config(false)).step(step), counted))
            << title(step);
}

TEST(Floors, ChosenIdsAndWeightsTakeThePlaceOfTheMap) {
    std::map<Step, Counted> chosen = kGated;
    chosen[Step::routing] = {0, 21, 14, 112};
    chosen[Step::token_dropping] = {0, 0, 28, 224};
    chosen[Step::dispatch] = {84, 0, 14 + 14, 112 + 136};
    chosen[Step::dispatch_backward] = {84, 0, 14 + 14, 136};
    chosen[Step::token_dropping_backward] = {0, 0, 28, 112};
    chosen[Step::routing_backward] = {0, 63, 14, 112};
    for (const auto& [step, counted] : chosen)
        EXPECT_TRUE(Moves(floors(costly_config(), kChosen).step(step), counted))
            << title(step);
    Formats small_ids = kChosen;
    small_ids.ids = DType::i32;
    EXPECT_TRUE(
        Moves(floors(costly_config(), small_ids).step(Step::routing), {0, 21, 14, 56}));
}

TEST(Floors, FollowTheConfig) {
    const auto step = [](Step step, const auto& change) {
        MoEConfig c = costly_config();
        change(c);
        return floors(c).step(step);
    };
    const auto bias = [](MoEConfig& c) { c.add_bias_linear = true; };
    EXPECT_TRUE(Moves(step(Step::gating, bias), {43, 21}));
    EXPECT_TRUE(Moves(step(Step::fc1, bias), {346, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::fc2, bias), {198, 0, 14, 24}));
    EXPECT_TRUE(Moves(step(Step::fc2_backward, bias), {328, 0, 14, 24}));
    EXPECT_TRUE(Moves(step(Step::fc1_backward, bias), {522, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::gating_backward, bias), {111, 21}));
    const auto on_input = [](MoEConfig& c) { c.moe_apply_probs_on_input = true; };
    EXPECT_TRUE(Moves(step(Step::fc1, on_input), {316, 0, 14, 24}));
    EXPECT_TRUE(Moves(step(Step::activation, on_input), {210}));
    EXPECT_TRUE(Moves(step(Step::activation_backward, on_input), {350}));
    EXPECT_TRUE(Moves(step(Step::fc1_backward, on_input), {492, 0, 28, 24}));
    const auto gate = [](MoEConfig& c) { c.moe_shared_expert_gate = true; };
    EXPECT_TRUE(Moves(step(Step::shared_experts, gate), {96}));
    EXPECT_TRUE(Moves(step(Step::shared_experts_backward, gate), {192}));
    const auto expert_bias = [](auto& c) { c.moe_router_enable_expert_bias = true; };
    EXPECT_TRUE(Moves(step(Step::routing, expert_bias), {0, 21, 24, 21}));
    const auto quantiles = [](MoEConfig& c) {
        c.moe_router_load_balancing_type = {"quantile_balancing"};
    };
    EXPECT_TRUE(Moves(step(Step::routing, quantiles), {0, 21, 24, 21}));
    const auto alone = [](MoEConfig& c) {
        c.moe_shared_expert_intermediate_size.reset();
    };
    EXPECT_TRUE(Moves(step(Step::combine, alone), {84, 0, 0, 136}));
    // Without losses nothing has written dlogits before.
    const auto no_losses = [](MoEConfig& c) { c.moe_aux_loss_coeff = {0.0}; };
    EXPECT_TRUE(Moves(step(Step::routing_backward, no_losses), {0, 42, 21, 21}));
}

TEST(Floors, StepsInOneDoNotMoveWhatLiesBetweenThem) {
    const Floors f = floors();
    using enum Floors::Rows;
    EXPECT_TRUE(Moves(f.gating_and_routing(), {40, 21, 21, 21}));
    EXPECT_TRUE(Moves(f.dispatch_to_activation(), {28 + 120 + 140 + 70, 0, 21, 157}));
    EXPECT_TRUE(Moves(f.fc1_and_activation(), {56 + 120 + 140 + 70, 0, 14, 24}));
    EXPECT_TRUE(Moves(f.experts_dh(gathered), {28 + 60 + 280 + 70, 0, 28, 136}));
    EXPECT_TRUE(Moves(f.experts_dh(dispatched), {56 + 60 + 280 + 70, 0, 28, 24}));
    EXPECT_TRUE(Moves(f.experts_dw2(gathered), {28 + 70 + 60, 0, 0, 136}));
    EXPECT_TRUE(Moves(f.experts_dw2(dispatched), {56 + 70 + 60, 0, 0, 24}));
    EXPECT_TRUE(Moves(f.experts_dx(), {140 + 120 + 56, 0, 0, 24}));
    EXPECT_TRUE(Moves(f.experts_dw1(gathered), {140 + 28 + 120, 0, 0, 136}));
    EXPECT_TRUE(Moves(f.experts_dw1(dispatched), {140 + 56 + 120, 0, 0, 24}));
    EXPECT_TRUE(Moves(f.losses_to_routing_backward(), {0, 42, 21, 21}));
    EXPECT_TRUE(Moves(f.gating_dx(), {12 + 56, 21}));
    EXPECT_TRUE(Moves(f.gating_dw(), {28 + 12, 21}));
    const Floors chosen = floors(costly_config(), kChosen);
    EXPECT_TRUE(Moves(chosen.gating_and_routing(), {40, 21, 14, 112}));
    EXPECT_TRUE(Moves(chosen.dispatch_to_activation(), {358, 0, 14, 112 + 136}));

    const auto total = [&](std::initializer_list<Step> steps) {
        std::int64_t sum = 0;
        for (Step step : steps) sum += f.step(step).total_bytes();
        return sum;
    };
    EXPECT_LT(f.gating_and_routing().total_bytes(), total({Step::gating, Step::routing}));
    EXPECT_LT(f.dispatch_to_activation().total_bytes(),
              total({Step::dispatch, Step::fc1, Step::activation}));
}

TEST(Floors, SharedExpertsAreAnMlpThatNobodyRoutesTo) {
    // N = 7, E = 1, F = 3: NH = 28, EFH = 12, NF = 21, and neither p nor metadata
    const Floors shared = floors().shared_experts();
    EXPECT_TRUE(Moves(shared.fc1_and_activation(), {28 + 24 + 42 + 21}));
    EXPECT_TRUE(Moves(shared.step(Step::fc2), {21 + 12 + 28}));
    for (const auto rows : {Floors::Rows::gathered, Floors::Rows::dispatched}) {
        EXPECT_TRUE(Moves(shared.experts_dh(rows), {28 + 12 + 84 + 21}));
        EXPECT_TRUE(Moves(shared.experts_dw2(rows), {28 + 21 + 12}));
        EXPECT_TRUE(Moves(shared.experts_dw1(rows), {42 + 28 + 24}));
    }
    EXPECT_TRUE(Moves(shared.experts_dx(), {42 + 24 + 28}));
}

// ℓ = 2: Nℓ = 28, Tℓ = 14, ℓH = 8, EFℓ = 30; NFℓ = 140, TℓH = 56
TEST(Floors, RowsOfALatentSizeAreNarrower) {
    MoEConfig c = costly_config();
    c.moe_latent_size = 2;
    const Floors f = floors(c);
    const auto step = [&](Step each) { return f.step(each); };
    EXPECT_TRUE(Moves(step(Step::dispatch), {28 + 28 + 8, 0, 21 + 14, 21 + 136}));
    EXPECT_TRUE(Moves(step(Step::fc1), {28 + 60 + 140, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::fc2), {70 + 30 + 28, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::combine), {28 + 56 + 8, 0, 0, 136}));
    EXPECT_TRUE(Moves(step(Step::combine_backward), {28 + 28 + 14 + 16, 0, 0, 136}));
    EXPECT_TRUE(Moves(step(Step::fc2_backward), {28 + 140 + 60, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::fc1_backward), {56 + 140 + 120, 0, 0, 24}));
    EXPECT_TRUE(Moves(step(Step::dispatch_backward), {28 + 56 + 16, 0, 14 + 21, 136}));
    EXPECT_EQ(step(Step::dispatch).formula, "TH + Nℓ + TE + ℓH + N + m");
    EXPECT_EQ(step(Step::dispatch).flops, 112);
    EXPECT_EQ(step(Step::fc1).flops, 560);
    EXPECT_EQ(step(Step::combine).flops, 112);
    EXPECT_EQ(step(Step::combine_backward).flops, 224);
    EXPECT_EQ(step(Step::dispatch_backward).flops, 224);
    // Router and shared experts see H
    for (const Step same : {Step::shared_experts, Step::gating, Step::gating_backward,
                            Step::shared_experts_backward})
        EXPECT_TRUE(Moves(step(same), kGated.at(same)));
    EXPECT_TRUE(Moves(f.shared_experts().experts_dx(), {42 + 24 + 28}));
    c.add_bias_linear = true;
    EXPECT_TRUE(Moves(floors(c).step(Step::dispatch), {66, 0, 21 + 14, 21 + 136}));
    EXPECT_TRUE(Moves(floors(c).step(Step::combine), {96, 0, 0, 136}));
}

TEST(Floors, CountTheArithmetic) {
    const Floors f = floors();
    using enum Floors::Rows;
    // TEH = 84, NFH = 280, T Fs H = 84; two operations for each
    const std::map<Step, double> flops = {{Step::shared_experts, 504},
                                          {Step::gating, 168},
                                          {Step::fc1, 1120},
                                          {Step::fc2, 560},
                                          {Step::fc2_backward, 1120},
                                          {Step::fc1_backward, 2240},
                                          {Step::gating_backward, 336},
                                          {Step::shared_experts_backward, 1008}};
    for (int n = 1; n <= kNumSteps; ++n) {
        const auto step = static_cast<Step>(n);
        EXPECT_EQ(f.step(step).flops, flops.contains(step) ? flops.at(step) : 0.0) << n;
    }
    EXPECT_EQ(f.gating_and_routing().flops, 168);
    EXPECT_EQ(f.dispatch_to_activation().flops, 1120);
    EXPECT_EQ(f.fc1_and_activation().flops, 1120);
    EXPECT_EQ(f.experts_dh(gathered).flops + f.experts_dw2(gathered).flops, 1120);
    EXPECT_EQ(f.experts_dx().flops + f.experts_dw1(gathered).flops, 2240);
    EXPECT_EQ(f.gating_dx().flops + f.gating_dw().flops, 336);
    EXPECT_EQ(floors(costly_config(false)).step(Step::fc1).flops, 560);
}

TEST(Floors, LogitsAndProbabilitiesAreFp32OrMore) {
    MoEConfig c = costly_config();
    const auto types = [&](DType dtype) {
        const Formats f = formats_of(c, dtype);
        EXPECT_EQ(f.dtype, dtype);
        return std::pair(f.logits, f.probs);
    };
    EXPECT_EQ(types(DType::bf16), std::pair(DType::f32, DType::f32));
    EXPECT_EQ(types(DType::f32), std::pair(DType::f32, DType::f32));
    EXPECT_EQ(types(DType::f64), std::pair(DType::f64, DType::f64));
    c.moe_router_dtype = "fp64";
    EXPECT_EQ(types(DType::bf16), std::pair(DType::f64, DType::f32));
}

// ------------------------------------------------------------------------- in words
/// The value of a sum of products such as "2NH + 3FsH + m", without m.
std::int64_t evaluate(const std::string& formula) {
    const std::map<char, std::int64_t> sizes = {{'T', 7}, {'N', 14}, {'H', 4},
                                                {'E', 3}, {'K', 2},  {'F', 5}};
    std::int64_t sum = 0;
    std::istringstream terms(formula);
    for (std::string term; std::getline(terms, term, '+');) {
        if (term == " m") continue;
        std::int64_t product = 1;
        for (std::size_t i = 0; i < term.size(); ++i) {
            const bool shared = term.compare(i, 2, "Fs") == 0;
            if (std::isdigit(term[i])) product *= term[i] - '0';
            if (std::isalpha(term[i])) product *= shared ? 3 : sizes.at(term[i]);
            i += shared;
        }
        sum += product;
    }
    return sum;
}

TEST(Floors, AreWhatTheirFormulaSays) {
    EXPECT_EQ(evaluate("2NH + 4EFH + 3FsH + m"), 112 + 240 + 36);
    for (const RoutingForm routing : {RoutingForm::dense, RoutingForm::chosen}) {
        const Formats bytes{DType::u8, DType::u8, DType::u8, DType::i64, routing};
        for (bool gated : {true, false})
            for (int n = 1; n <= kNumSteps; ++n) {
                const Floor floor =
                    floors(costly_config(gated), bytes).step(static_cast<Step>(n));
                EXPECT_EQ(floor.bytes, evaluate(floor.formula)) << floor.formula;
                EXPECT_EQ(floor.metadata > 0, floor.formula.ends_with(" + m"))
                    << floor.formula;
            }
    }
    const Floors f = floors();
    EXPECT_EQ(f.step(Step::dispatch).formula, "TH + NH + TE + N + m");
    EXPECT_EQ(f.step(Step::fc1_backward).formula, "2NH + 2NF + 4EFH + m");
    EXPECT_EQ(f.dispatch_to_activation().formula, "TH + TE + 2EFH + 3NF + m");
}

TEST(Floors, CostNothingWhereTheyAreOff) {
    MoEConfig c = small_config(4, 3, 2, 5);
    c.finalize();
    std::set<Step> off = {Step::shared_experts,   Step::shared_experts_backward,
                          Step::token_dropping,   Step::token_dropping_backward,
                          Step::auxiliary_losses, Step::auxiliary_losses_backward};
    const auto expect_off = [&] {
        for (int n = 1; n <= kNumSteps; ++n) {
            const Floor floor = floors(c).step(static_cast<Step>(n));
            EXPECT_EQ(floor.is_off(), off.contains(static_cast<Step>(n))) << n;
            EXPECT_EQ(floor.total_bytes() == 0, floor.is_off()) << n;
        }
    };
    expect_off();
    c.moe_z_loss_coeff = 0.01;
    off.erase(Step::auxiliary_losses);
    off.erase(Step::auxiliary_losses_backward);
    expect_off();
}

}  // namespace
}  // namespace moe::test
