// The flex dispatcher's heap: its limit, its growth, who may write into it when, and the
// order in which sums are pulled out of it.

#include <array>
#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/peer_memory/flagged_heap.h"
#include "distributed/process_groups.h"
#include "gpu/check.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::make_process_groups;
using distributed::ProcessGroupsPtr;
using distributed::run_ranks;
using Values = std::vector<double>;

MoEConfig flex_config(std::int64_t hidden, std::int64_t experts, std::int64_t topk,
                      std::int64_t ep) {
    MoEConfig config = small_config(hidden, experts, topk);
    config.expert_model_parallel_size = ep;
    config.moe_router_pre_softmax = true;  // K may be 1
    config.moe_token_dispatcher_type = "flex";
    config.finalize();
    return config;
}

std::unique_ptr<TokenDispatcher> make(const ComponentSpec& supplier,
                                      const MoEConfig& config,
                                      const ProcessGroupsPtr& groups) {
    return find_tier("tier", supplier.tier)
        .make_dispatcher(config, supplier.dtype, groups);
}

/// (rows, width), all `value`.
Tensor filled(std::int64_t rows, std::int64_t width, double value,
              const Placement& placement) {
    return transfer(
        Tensor::from<double>({rows, width}, Values(std::size_t(rows * width), value)),
        placement);
}

/// Token t goes to the experts that `chooses(t, e)` names, with probability 1.
template <typename Chooses>
TokenDispatcher::Dispatched dispatch(TokenDispatcher& dispatcher, const Tensor& hidden,
                                     std::int64_t experts, Chooses&& chooses) {
    const std::int64_t T = hidden.dim(0);
    Tensor map = Tensor::zeros({T, experts}, DType::u8);
    for (std::int64_t i = 0; i < T * experts; ++i)
        map.data<std::uint8_t>()[i] = chooses(i / experts, i % experts);
    const Placement at = dispatcher.placement();
    return dispatcher.dispatch(hidden, filled(T, experts, 1.0, probs_placement(at)),
                               transfer(map, at), {});
}

class FlexHeap : public testing::TestWithParam<ComponentSpec> {
  protected:
    Placement at() const { return placement_of(GetParam()); }
    /// Of a heap with regions for all sources, of which no host knows the counts.
    static bool has_regions() { return GetParam().tier == "optimized_gpu"; }
    std::size_t heap_bytes(const distributed::ProcessGroups& groups) const {
        return has_regions() ? groups.flagged_heap->bytes()
                             : groups.heap->bytes(at().space);
    }
};

// ------------------------------------------------------------------------------ limit

/// What each of four ranks has to say about a heap of at most `limit` bytes.
std::vector<std::string> complaints(const ComponentSpec& supplier,
                                    std::optional<std::int64_t> limit) {
    std::vector<std::string> lines(4);
    const Placement at = placement_of(supplier);
    run_ranks(4, [&](Communicator& world) {
        MoEConfig config = flex_config(3, 8, 2, 4);
        config.moe_flex_peer_heap_bytes = limit;
        const auto dispatcher =
            make(supplier, config, make_process_groups(world, config));
        // Rank 2 gets a row of every token, the others of fewer
        const std::int64_t T = 1 + 100 * world.rank();
        try {
            dispatch(
                *dispatcher, filled(T, 3, 1.0, at), 8,
                [&](std::int64_t t, std::int64_t e) { return e == 4 || e == t % 4; });
        } catch (const InputError& error) {
            lines[world.rank()] = error.what();
        }
    });
    return lines;
}

TEST_P(FlexHeap, IsNeverLargerThanItsLimit) {
    EXPECT_EQ(complaints(GetParam(), std::nullopt), std::vector<std::string>(4));
    const auto lines = complaints(GetParam(), 4096);
    for (const std::string& line : lines) EXPECT_EQ(line, lines[0]);
    EXPECT_TRUE(Rejects([&] { throw InputError(lines[0]); },
                        {"moe_flex_peer_heap_bytes = 4096: ", "must be at least ",
                         has_regions() ? "4 ranks of up to 301 tokens"
                                       : "604 rows that rank 2 receives"}));
    const std::string needed = lines[0].substr(lines[0].find("least ") + 6);
    const std::int64_t bytes = std::stoll(needed);
    EXPECT_GE(bytes, 604 * std::int64_t(3 * size_of(GetParam().dtype) + 8 + 8));
    EXPECT_EQ(complaints(GetParam(), bytes), std::vector<std::string>(4));
    EXPECT_NE(complaints(GetParam(), bytes - 1), std::vector<std::string>(4));
}

TEST_P(FlexHeap, GrowsWithItsNeedsAndIsKept) {
    std::vector<std::size_t> bytes;  // after each forward
    std::int64_t limit = 0;
    run_ranks(2, [&](Communicator& world) {
        MoEConfig config = flex_config(8, 2, 1, 2);
        const ProcessGroupsPtr groups = make_process_groups(world, config);
        const auto forward = [&](const MoEConfig& layer, std::int64_t T) {
            const auto dispatcher = make(GetParam(), layer, groups);
            const Tensor hidden = filled(T, 8, double(T), at());
            const auto sent = dispatch(*dispatcher, hidden, 2,
                                       [](auto t, auto e) { return e == t % 2; });
            EXPECT_TRUE(BitwiseEqual(
                dispatcher->combine(sent.rows.values, {}, *sent.saved, {}), hidden));
            world.barrier();
            if (world.rank() == 0) bytes.push_back(heap_bytes(*groups));
            world.barrier();
        };
        forward(config, 0);
        forward(config, 60);
        forward(config, 70);  // a little more: twice as much
        forward(config, 1);
        if (world.rank() == 0) limit = std::int64_t(bytes.back()) + 4096;
        world.barrier();
        config.moe_flex_peer_heap_bytes = limit;
        forward(config, 130);  // twice as much would be over the limit
    });
    ASSERT_EQ(bytes.size(), 5u);
    EXPECT_GT(bytes[1], bytes[0]);
    EXPECT_EQ(bytes[2], 2 * bytes[1]);
    EXPECT_EQ(bytes[3], bytes[2]);
    EXPECT_GT(bytes[4], bytes[3]);
    EXPECT_LE(bytes[4], std::size_t(limit));
}

// ------------------------------------------------------------------------------ reuse

// Rank 0 is busy with many rows of its own before it comes to those of rank 1,
// which has little to do and is on its way to the next exchange.
constexpr std::int64_t kFew = 8, kWide = 16;
std::int64_t busy(const std::string& tier) {
    return tier == "optimized_gpu" ? 700 : 6000;
}

TEST_P(FlexHeap, KeepsWhatOthersPull) {
    run_ranks(2, [&](Communicator& world) {
        const MoEConfig config = flex_config(kWide, 2, 1, 2);
        const auto dispatcher =
            make(GetParam(), config, make_process_groups(world, config));
        const std::int64_t many = busy(GetParam().tier);
        const std::int64_t T = world.rank() == 0 ? many : 0;
        const auto sent =
            dispatch(*dispatcher, filled(T, kWide, 1.0, at()), 2,
                     [=](auto t, auto e) { return e == (t >= many - kFew); });
        for (int i = 1; i <= 6; ++i) {
            const Tensor rows = filled(sent.rows.values.dim(0), kWide, i, at());
            EXPECT_TRUE(BitwiseEqual(dispatcher->combine(rows, {}, *sent.saved, {}),
                                     filled(T, kWide, i, at())));
        }
    });
}

TEST_P(FlexHeap, KeepsWhatItsOwnerTakes) {
    run_ranks(2, [&](Communicator& world) {
        const MoEConfig config = flex_config(kWide, 2, 1, 2);
        const auto dispatcher =
            make(GetParam(), config, make_process_groups(world, config));
        const std::int64_t many = busy(GetParam().tier);
        const std::int64_t T = world.rank() == 0 ? many : kFew;
        const auto sent = dispatch(*dispatcher, filled(T, kWide, 1.0, at()), 2,
                                   [](auto, auto e) { return e == 0; });
        const std::int64_t N = world.rank() == 0 ? many + kFew : 0;
        for (int i = 1; i <= 6; ++i)
            EXPECT_TRUE(BitwiseEqual(
                dispatcher->combine_backward(filled(T, kWide, i, at()), *sent.saved, {})
                    .values.first(N),
                filled(N, kWide, i, at())));
    });
}

TEST_P(FlexHeap, ServesLayersAndMicrobatchesInAnyOrder) {
    // Two layers on one heap, of other widths and routings, each with two forwards alive.
    run_ranks(4, [&](Communicator& world) {
        struct Layer {
            MoEConfig config;
            std::unique_ptr<TokenDispatcher> dispatcher;
        };
        std::array<Layer, 2> layers;
        layers[0].config = flex_config(3, 8, 2, 4);
        layers[1].config = flex_config(7, 4, 1, 4);
        const auto groups = make_process_groups(world, layers[0].config);
        for (Layer& layer : layers)
            layer.dispatcher = make(GetParam(), layer.config, groups);
        struct Alive {
            Tensor hidden;
            TokenDispatcher::Dispatched sent;
        };
        const auto forward = [&](Layer& layer, std::int64_t T, double value) {
            const auto E = layer.config.num_experts(), K = layer.config.moe_router_topk;
            Alive alive{filled(T, layer.config.hidden_size, value + world.rank(), at()),
                        {}};
            alive.sent = dispatch(*layer.dispatcher, alive.hidden, E,
                                  [&](auto t, auto e) { return (e + t) % E < K; });
            return alive;
        };
        // With rows as they came, a token gets itself back K times.
        const auto expect_back = [&](Layer& layer, const Alive& alive,
                                     const Tensor& got) {
            Values expected = to_doubles(alive.hidden);
            for (double& value : expected) value *= double(layer.config.moe_router_topk);
            EXPECT_EQ(to_doubles(got), expected);
        };
        const auto combine = [&](Layer& layer, const Alive& alive) {
            expect_back(layer, alive,
                        layer.dispatcher->combine(alive.sent.rows.values, {},
                                                  *alive.sent.saved, {}));
        };
        const auto backward = [&](Layer& layer, const Alive& alive) {
            const Tensor drows =
                layer.dispatcher->combine_backward(alive.hidden, *alive.sent.saved, {})
                    .values;
            EXPECT_TRUE(BitwiseEqual(drows, alive.sent.rows.values));
            expect_back(layer, alive,
                        layer.dispatcher
                            ->dispatch_backward(drows, alive.sent.row_probs,
                                                *alive.sent.saved, {})
                            .dhidden);
        };
        for (int round = 0; round < 3; ++round) {
            const Alive a = forward(layers[0], 4, 1);
            const Alive b = forward(layers[1], 9 * (world.rank() == 2), 20);
            combine(layers[0], a);
            const Alive c = forward(layers[0], 30 + 50 * round, 40);  // the heap grows
            combine(layers[1], b);
            combine(layers[0], c);
            const Alive d = forward(layers[1], 3, 80);
            backward(layers[0], a);
            combine(layers[1], d);
            backward(layers[1], d);
            backward(layers[1], b);
            backward(layers[0], c);
        }
    });
}

// ------------------------------------------------------------------------------- sums

TEST_P(FlexHeap, SumsInTheOrderOfTheRanks) {
    const bool f64 = GetParam().dtype == DType::f64;
    // Only in the order of the ranks does the small term survive; and 256 + 1 + 1, which
    // bf16 has, only with a sum in fp32.
    const double large = f64 ? 0x1p60 : 0x1p30;
    for (const auto& [terms, sum] :
         {std::pair(Values{large, -large, 1.0}, 1.0), {Values{256, 1, 1}, 258.0}}) {
        run_ranks(3, [&](Communicator& world) {
            const MoEConfig config = flex_config(1, 3, 3, 3);
            const auto dispatcher =
                make(GetParam(), config, make_process_groups(world, config));
            const auto sent = dispatch(*dispatcher, filled(2, 1, 1.0, at()), 3,
                                       [](auto, auto) { return true; });
            const Tensor rows = filled(6, 1, terms[world.rank()], at());
            EXPECT_EQ(to_doubles(dispatcher->combine(rows, {}, *sent.saved, {})),
                      Values(2, sum));
            EXPECT_EQ(
                to_doubles(
                    dispatcher->dispatch_backward(rows, sent.row_probs, *sent.saved, {})
                        .dhidden),
                Values(2, sum));
            const Tensor shared = filled(2, 1, 2.0, at());
            EXPECT_EQ(to_doubles(dispatcher->combine(rows, shared, *sent.saved, {})),
                      Values(2, sum + 2.0));
        });
    }
}

TEST_P(FlexHeap, RefusesMoreChoicesThanK) {
    const auto dispatch_three = [&] {
        run_ranks(2, [&](Communicator& world) {
            const MoEConfig config = flex_config(1, 4, 2, 2);
            dispatch(*make(GetParam(), config, make_process_groups(world, config)),
                     filled(2, 1, 1.0, at()), 4, [](auto, auto e) { return e != 1; });
        });
    };
    if (GetParam().tier == "optimized_gpu") {  // the kernel stops
        EXPECT_THROW(dispatch_three(), gpu::DeviceError);
        cudaGetLastError();
    } else {
        EXPECT_THROW(dispatch_three(), InternalError);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, FlexHeap,
                         testing::ValuesIn(with_dispatcher(available_suppliers(),
                                                           "flex")),
                         instance_name);

// ------------------------------------------------------------------------------ dedup

TEST(FlexRows, AreAsManyAsChanceSays) {
    // 64 experts, 8 per token, drawn alike: W (1 - C(64 - 64 / W, 8) / C(64, 8)) ranks
    // per token, of which (W - 1) / W are others.
    constexpr std::int64_t E = 64, K = 8, T = 400;
    for (const auto& [W, expected] : {std::pair(2, 1.00), {4, 2.74}, {8, 4.75}}) {
        std::vector<double> remote(W);
        run_ranks(W, [&, W = W](Communicator& world) {
            const MoEConfig config = flex_config(1, E, K, W);
            const auto dispatcher = make({"reference_cpu", DType::f32}, config,
                                         make_process_groups(world, config));
            const Rng rng(7 + world.rank());
            std::vector<std::uint8_t> chosen(T * E);
            for (std::int64_t t = 0; t < T; ++t) {
                std::vector<std::int64_t> order(E);
                std::iota(order.begin(), order.end(), 0);
                for (std::int64_t k = 0; k < K; ++k) {
                    std::swap(order[k], order[k + rng.below(t * K + k, E - k)]);
                    chosen[t * E + order[k]] = 1;
                }
            }
            dispatch(*dispatcher, filled(T, 1, 1.0, dispatcher->placement()), E,
                     [&](auto t, auto e) { return chosen[t * E + e] != 0; });
            const double row = 1 * 4 + K * (4 + 4) + 8;
            const auto sent = world.ledger().sent();
            for (const auto& [peer, bytes] : sent.at("flex_dispatch"))
                remote[world.rank()] += double(bytes) / row / T;
        });
        const double mean = std::accumulate(remote.begin(), remote.end(), 0.0) / W;
        RecordProperty("rows_per_token_" + std::to_string(W), std::to_string(mean));
        EXPECT_NEAR(mean, expected, 0.02 * expected) << W << " ranks";
    }
}

}  // namespace
}  // namespace moe::test
