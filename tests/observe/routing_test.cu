// routing_test.cu: what the fused routing moves, against its floor, and that nothing in
// it races.

#include <fstream>

#include "core/floors.h"
#include "core/transfer.h"
#include "optimized_gpu/gating.h"
#include "optimized_gpu/given_experts.h"
#include "optimized_gpu/topk_router.h"
#include "optimized_gpu/unfused_routing.h"
#include "tests/observe/support.h"
#include "tests/optimized/load_balancing_support.h"

namespace moe::test {
namespace {

using cuda_on_cpu::observe::Requests;

constexpr std::int64_t kTokens = 256;

MoEConfig config_of(bool pre_softmax) {
    MoEConfig config;
    config.hidden_size = 64;
    config.num_moe_experts = 128;
    config.moe_router_topk = 8;
    config.moe_router_pre_softmax = pre_softmax;
    config.add_bias_linear = false;
    config.finalize();
    return config;
}

Floors floors_of(const MoEConfig& config) {
    Formats formats = formats_of(config, DType::bf16);
    formats.ids = DType::i32;
    formats.routing = RoutingForm::chosen;
    return Floors(config, {kTokens, kTokens * config.moe_router_topk}, formats);
}

/// What the lines of a header of optimized_gpu that end in "// <mark>" did.
Requests at(const Report& report, const std::string& header, const std::string& mark,
            Requests Counters::*which) {
    std::ifstream source(MOE_SOURCE_DIR "/optimized_gpu/" + header);
    EXPECT_TRUE(source.good()) << header;
    Requests sum;
    int number = 0;
    for (std::string line; std::getline(source, line);) {
        ++number;
        if (!line.ends_with("// " + mark)) continue;
        for (const auto& kernel : report.kernels)
            for (const auto& each : kernel.lines)
                if (each.line == number && each.file.ends_with("/" + header)) {
                    const Requests& seen = each.counters.*which;
                    sum.requests += seen.requests;
                    sum.sectors += seen.sectors;
                    sum.ideal_sectors += seen.ideal_sectors;
                }
    }
    EXPECT_GT(sum.requests, 0u) << mark;
    return sum;
}

template <typename Work>
Report report_of(Work work, bool races = false) {
    cuda_on_cpu::observe::start({.races = races});
    work();
    cuda_on_cpu::observe::stop();
    return cuda_on_cpu::observe::report();
}

optimized::RoutingGradientOperands gradient_operands(const RoutingProblem& p,
                                                     const Tensor& ids) {
    optimized::RoutingGradientOperands operands;
    operands.dweights = on_device(random_multiples(p.T() * p.K(), 3), {p.T(), p.K()});
    operands.logits = on_device(p.logits, {p.T(), p.E()});
    operands.ids = ids;
    return operands;
}

/// No more than 5 % above it. (Below it are kernels that read the chosen logits alone.)
void expect_floor(const Counters& counters, const Floor& floor) {
    EXPECT_LE(double(counters.compulsory_bytes()), 1.05 * double(floor.total_bytes()))
        << floor.formula << ", " << floor.total_bytes() << " bytes";
}

TEST(ObserveRouting, OneLaunchMovesTheFloor) {
    for (const bool pre_softmax : {false, true}) {
        const MoEConfig config = config_of(pre_softmax);
        const RoutingProblem p =
            make_problem(optimized::make_routing_rule(config), kTokens);
        auto routed = poisoned_buffers(p);
        const auto operands = operands_of(p);
        const Report report =
            report_of([&] { optimized::route(routed, operands, p.rule); });
        ASSERT_EQ(report.launches.size(), 1u);
        EXPECT_EQ(report.host_waits + report.allocations, 0u);
        expect_floor(report.launches[0].counters, floors_of(config).step(Step::routing));

        const Requests logits = at(report, "warp_row.h", "load_row", &Counters::loads);
        EXPECT_EQ(logits.requests, kTokens * 128 / 32u);
        EXPECT_EQ(logits.sectors, 4 * logits.requests);
        EXPECT_EQ(logits.sectors, logits.ideal_sectors);
    }
}

// Tokens and weights in bf16, as a layer in bf16 hands them over
TEST(ObserveRouting, TheGateMovesItsFloor) {
    const MoEConfig config = config_of(true);
    const auto in_bf16 = [](const Shape& shape, std::uint64_t seed) {
        const Tensor values =
            on_device(random_multiples(num_elements(shape), seed), shape);
        return transfer(values, {MemorySpace::device, DType::bf16});
    };
    const Tensor weight = in_bf16({128, 64}, 1);
    const Tensor hidden = in_bf16({kTokens, 1, 64}, 2);
    optimized::TopKRouter router(config, DType::f32, {{"router.weight", weight}},
                                 distributed::single_rank_groups());
    router.forward(hidden, {}, {});  // makes what later ones have
    const Report forward = report_of([&] { router.forward(hidden, {}, {}); });
    expect_floor(forward.launches.at(0).counters, floors_of(config).step(Step::gating));

    const Tensor dlogits = on_device(random_multiples(kTokens * 128, 3), {kTokens, 128});
    Tensor dhidden = in_bf16({kTokens, 64}, 4);
    const Report backward =
        report_of([&] { optimized::gating_backward_input(dhidden, dlogits, weight); });
    expect_floor(backward.launches.at(0).counters, floors_of(config).gating_dx());
}

TEST(ObserveRouting, TheBackwardMovesItsFloor) {
    for (const bool pre_softmax : {false, true}) {
        const MoEConfig config = config_of(pre_softmax);
        const RoutingProblem p =
            make_problem(optimized::make_routing_rule(config), kTokens);
        const auto routed = route(p);
        const auto operands = gradient_operands(p, routed.ids);
        Tensor dlogits = gpu::device_empty<float>({p.T(), p.E()});
        const Report report =
            report_of([&] { optimized::route_backward(dlogits, operands, p.rule); });
        ASSERT_EQ(report.launches.size(), 1u);
        EXPECT_EQ(report.host_waits + report.allocations, 0u);
        expect_floor(report.launches[0].counters,
                     floors_of(config).losses_to_routing_backward());
        const Requests stores = at(report, "warp_row.h", "store_row", &Counters::stores);
        EXPECT_EQ(stores.sectors, stores.ideal_sectors);
    }
}

TEST(ObserveRouting, LossesCostTheirSums) {
    const MoEConfig config = config_of(true);
    RoutingProblem p = make_problem(optimized::make_routing_rule(config), kTokens);
    p.populations = 1;
    auto routed = poisoned_buffers(p);
    const auto operands = operands_of(p);
    const auto loss_rule = make_rule(128, 8, 1, 1 + 4 + 8);
    Tensor global = zero_counts(loss_rule);
    const Report report = report_of([&] {
        optimized::route(routed, operands, p.rule);
        optimized::auxiliary_losses(routed.losses, global, loss_rule);
    });
    ASSERT_EQ(report.launches.size(), 2u);
    EXPECT_EQ(report.launches[1].kernel, "auxiliary_losses_kernel");
    // 32 blocks of 8 tokens write 128 sums each, and these are read again
    const std::uint64_t partial = 32 * (128 + 1) * 4;
    const auto bytes = [&](int i) {
        return report.launches[i].counters.compulsory_bytes();
    };
    EXPECT_LE(double(bytes(0)),
              1.05 * double(floors_of(config).step(Step::routing).total_bytes()) +
                  double(partial));
    // Counts are read and dscores written; counts of the global loss change; five blocks
    // leave four sums each, which the last one reads; and single numbers in sectors
    EXPECT_LE(bytes(1), partial + 128 * (4 + 4) + 2 * 129 * 8 + 2 * 5 * 32 + 6 * 32);
    std::uint64_t sectors = 0, ideal = 0;
    for (const auto& kernel : report.kernels)
        if (kernel.name == "auxiliary_losses_kernel")
            for (const auto& line : kernel.lines) {
                sectors += line.counters.loads.sectors;
                ideal += line.counters.loads.ideal_sectors;
            }
    EXPECT_LE(sectors, ideal * 11 / 10);
}

TEST(ObserveRouting, HasNoRaces) {
    for (RoutingProblem p : all_features(41, 70, 8, 7, 3)) {
        p.populations = 1;
        p.padding_mask.assign(p.T(), 0);
        p.padding_mask[3] = 1;
        p.logits[5] = p.logits[900] = NAN;  // two blocks tell
        auto routed = poisoned_buffers(p);
        auto operands = operands_of(p);
        operands.local_tokens_per_expert =
            on_device(std::vector<std::int64_t>(70, 0), {70});
        auto above = gradient_operands(p, routed.ids);
        above.padding_mask = operands.padding_mask;
        above.losses.dscores = on_device(random_multiples(70, 9), {1, 70});
        above.losses.z_scale = on_device(std::vector<float>{0.5f}, {1});
        Tensor dlogits = gpu::device_empty<float>({p.T(), p.E()});
        const Report report = report_of(
            [&] {
                optimized::route(routed, operands, p.rule);
                optimized::route_backward(dlogits, above, p.rule);
            },
            true);
        EXPECT_EQ(report.launches.size(), 2u);
        EXPECT_EQ(findings_of(report), "") << p;
        const auto unfused = [&] {
            const auto kept = optimized::route_unfused(routed, operands, p.rule);
            const auto gradient = optimized::route_unfused_backward(above, p.rule);
        };
        EXPECT_EQ(findings_of(report_of(unfused, true)), "") << p;
    }
}

TEST(ObserveRouting, GivenExpertsCostTheirIdsAndHaveNoRaces) {
    const MoEConfig config = config_of(false);
    const RoutingProblem p = make_problem(optimized::make_routing_rule(config), kTokens);
    std::vector<std::int64_t> table, token_ids;
    for (std::int64_t v = 0; v < 19; ++v)
        for (std::int64_t k = 0; k < 8; ++k) table.push_back((v * 11 + k * 3) % 128);
    for (std::int64_t t = 0; t < kTokens; ++t) token_ids.push_back(t * 7 % 19);
    const Tensor tid2eid =
        optimized::to_device_ids(Tensor::from<std::int64_t>({19, 8}, table));
    const Tensor ids =
        optimized::to_device_ids(Tensor::from<std::int64_t>({kTokens}, token_ids));
    auto routed = poisoned_buffers(p);
    auto operands = operands_of(p);
    operands.has_precomputed_ids = true;
    const auto work = [&] {
        optimized::look_up_experts(routed.ids, tid2eid, ids);
        optimized::route(routed, operands, p.rule);
    };
    const Report report = report_of(work);
    ASSERT_EQ(report.launches.size(), 2u);
    EXPECT_EQ(report.host_waits + report.allocations, 0u);
    EXPECT_EQ(report.launches[0].kernel, "look_up_experts_kernel");
    // Ids of tokens, rows of the table, and what is written
    EXPECT_LE(report.launches[0].counters.compulsory_bytes(),
              std::uint64_t(kTokens * 4 + 19 * 8 * 4 + kTokens * 8 * 4 + 2 * 32));
    // Every logit is still looked at: it must be finite
    EXPECT_LE(double(report.launches[1].counters.compulsory_bytes()),
              1.05 * double(floors_of(config).step(Step::routing).total_bytes()) +
                  double(kTokens * 8 * 4));
    EXPECT_EQ(findings_of(report_of(work, true)), "");
}

// Blocks read the counts that the last one changes
TEST(ObserveRouting, LossesHaveNoRaces) {
    for (const int P : {1, 3})
        for (const unsigned losses : {1u, 8u, P == 1 ? 13u : 15u}) {
            const auto rule = make_rule(70, 4, P, losses);
            const auto statistics = upload(make_statistics(rule, P, 40, 9, 33));
            Tensor global = zero_counts(rule);
            const Report report = report_of(
                [&] { optimized::auxiliary_losses(statistics, global, rule); }, true);
            EXPECT_EQ(report.launches.size(), 1u);
            EXPECT_EQ(findings_of(report), "");
        }
}

}  // namespace
}  // namespace moe::test
