// The flex dispatcher of optimized_gpu, whose host neither waits nor knows how many rows
// there are: that is counted, a whole layer over ranks becomes a CUDA graph, and rows for
// which there is no room are dropped as in every tier.

#include "core/buffer_pool.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/peer_memory/flagged_heap.h"
#include "distributed/process_groups.h"
#include "gpu/counters.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "tests/ranks/support.h"
#ifdef MOE_EXECUTOR
#include "tests/gpu/held_streams.h"
#endif

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::make_process_groups;
using distributed::run_ranks;

constexpr std::int64_t kHidden = 24;
const ComponentSpec kOptimized = {"optimized_gpu", DType::bf16};

MoEConfig flex_config(int ep, bool fused) {
    MoEConfig config = small_config(kHidden, 12, 3, 16);
    config.expert_model_parallel_size = ep;
    config.moe_token_dispatcher_type = "flex";
    config.moe_permute_fusion = fused;
    config.moe_flex_max_tokens_per_rank = 29;
    config.finalize();
    return config;
}

/// A layer of one rank, and what it is called with: of each rank's own number of tokens.
struct RankLayer {
    MoELayer layer;
    Tensor hidden, doutput;

    RankLayer(const MoEConfig& config, const distributed::ProcessGroupsPtr& groups)
        : layer(config, ModuleSpec::uniform(kOptimized), random_parameters(config, 1),
                groups) {
        const Shape shape = {29 - 7 * groups->world->rank(), 1, kHidden};
        hidden = Tensor::empty(shape, DType::bf16, MemorySpace::device);
        doutput = Tensor::empty(shape, DType::bf16, MemorySpace::device);
        write(0);
    }
    void write(int step) const {
        const Placement at = {MemorySpace::device, DType::bf16};
        copy(hidden, transfer(random_tensor(hidden.shape(), 3 + step), at));
        copy(doutput, transfer(random_tensor(hidden.shape(), 30 + step), at));
    }
    struct Results {
        Tensor output;
        MoELayer::Gradients gradients;
    };
    Results call() {
        auto forward = layer.forward(hidden, {}, {});
        return {forward.output, layer.backward(doutput, forward.saved, {})};
    }
};

void expect_same(const RankLayer::Results& got, const RankLayer::Results& expected) {
    EXPECT_TRUE(BitwiseEqual(got.output, expected.output));
    EXPECT_TRUE(
        BitwiseEqual(got.gradients.hidden_states, expected.gradients.hidden_states));
    for (const auto& [name, gradient] : expected.gradients.parameters)
        EXPECT_TRUE(BitwiseEqual(got.gradients.parameters.at(name), gradient)) << name;
}

class FlexWithoutWaits : public testing::TestWithParam<bool> {};

TEST_P(FlexWithoutWaits, LetsNoHostWait) {
    NEEDS_DEVICE();
    const MoEConfig config = flex_config(3, GetParam());
    std::int64_t waits = -1;
    run_ranks(3, [&](Communicator& world) {
        const auto groups = make_process_groups(world, config);
        RankLayer rank(config, groups);
        BufferPool pool;
        const BufferPool::Scope scope(pool);
        rank.call();  // makes the heap
        world.barrier();
        const std::int64_t before = gpu::counters().host_waits;
        world.barrier();
        for (int i = 0; i < 2; ++i) rank.call();
        world.barrier();
        if (world.rank() == 0) waits = gpu::counters().host_waits - before;
        world.barrier();
    });
    EXPECT_EQ(waits, 0);
}

TEST_P(FlexWithoutWaits, BecomesAGraph) {
    NEEDS_DEVICE();
    const MoEConfig config = flex_config(3, GetParam());
    run_ranks(3, [&](Communicator& world) {
        const gpu::Stream stream;
        const gpu::StreamGuard guard(stream.get());
        const auto groups = make_process_groups(world, config);
        RankLayer rank(config, groups), called(config, groups);
        BufferPool pool;
        RankLayer::Results results;
        cudaGraphExec_t exec = nullptr;
        {
            const BufferPool::Scope scope(pool);
            rank.call();
            gpu::check(
                cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal),
                "cudaStreamBeginCapture");
            results = rank.call();
            cudaGraph_t graph = nullptr;
            gpu::check(cudaStreamEndCapture(stream.get(), &graph),
                       "cudaStreamEndCapture");
            gpu::check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
            cudaGraphDestroy(graph);
        }
        for (int step = 1; step < 4; ++step) {
            SCOPED_TRACE(step);
            rank.write(step);
            called.write(step);
            const RankLayer::Results expected = called.call();
            gpu::check(cudaGraphLaunch(exec, stream.get()), "cudaGraphLaunch");
            gpu::check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
            expect_same(results, expected);
        }
        cudaGraphExecDestroy(exec);
    });
}

INSTANTIATE_TEST_SUITE_P(Rows, FlexWithoutWaits, testing::Bool(), [](const auto& info) {
    return info.param ? "gathered" : "copied";
});

#ifdef MOE_EXECUTOR
// A wait between streams that is missing shows as a value that is not there yet.
TEST_P(FlexWithoutWaits, MakesTheSameBitsInStreamsThatHoldBack) {
    const MoEConfig config = flex_config(3, GetParam());
    const auto run = [&] {
        std::vector<RankLayer::Results> results(3);
        run_ranks(3, [&](Communicator& world) {
            const gpu::Stream stream;
            const gpu::StreamGuard guard(stream.get());
            RankLayer rank(config, make_process_groups(world, config));
            rank.call();
            results[world.rank()] = rank.call();
            gpu::check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
        });
        return results;
    };
    const auto expected = run();
    for (const char* order : kStreamOrders) {
        SCOPED_TRACE(order);
        std::vector<RankLayer::Results> got;
        {
            const HeldStreams held(order);
            got = run();
        }
        for (int r = 0; r < 3; ++r) expect_same(got[r], expected[r]);
    }
}
#endif

// One barrier for each turn, and one more where it follows on its like or elsewhere.
TEST(FlaggedHeapTurns, TakeABarrierMoreWhereTheyDoNotAlternate) {
    NEEDS_DEVICE();
    using Turn = distributed::FlaggedHeap::Turn;
    run_ranks(2, [&](Communicator& world) {
        gpu::register_device_memory();
        distributed::FlaggedHeap heap(world.split("some", 0, world.rank()));
        heap.reserve(1000, 4000);
        const auto operations = [&] {
            const std::int64_t number = world.ledger().begin("counting", "", 0).sequence;
            world.ledger().end();
            return number;
        };
        const auto turn = [&](Turn which, std::size_t layout) {
            const std::int64_t before = operations();
            heap.begin(which, layout, Step::dispatch);
            heap.meet(Step::dispatch, {});
            return operations() - before - 1;
        };
        const std::int64_t one = turn(Turn::push, 7);
        EXPECT_EQ(turn(Turn::offer, 7), one);
        EXPECT_EQ(turn(Turn::push, 7), one);
        EXPECT_EQ(turn(Turn::push, 7), 2 * one);
        EXPECT_EQ(turn(Turn::offer, 8), 2 * one);
        EXPECT_EQ(turn(Turn::push, 8), one);
        EXPECT_EQ(turn(Turn::offer, 8), one);
        heap.reserve(2000, 4000);  // nobody has written into this one
        EXPECT_EQ(turn(Turn::offer, 9), one);
        world.barrier();
    });
}

TEST(FlexMaxTokens, IsWhatAGraphNeedsAndNobodyMayExceed) {
    NEEDS_DEVICE();
    MoEConfig config = flex_config(2, true);
    config.moe_flex_max_tokens_per_rank = 22;  // rank 0 has 29
    std::vector<std::string> lines(2);
    const auto run = [&](bool captured) {
        lines = std::vector<std::string>(2);
        try {
            run_ranks(2, [&](Communicator& world) {
                const gpu::Stream stream;
                const gpu::StreamGuard guard(stream.get());
                RankLayer rank(config, make_process_groups(world, config));
                BufferPool pool;
                const BufferPool::Scope scope(pool);
                if (captured) {
                    rank.call();
                    gpu::check(cudaStreamBeginCapture(stream.get(),
                                                      cudaStreamCaptureModeThreadLocal),
                               "cudaStreamBeginCapture");
                }
                try {
                    rank.call();
                } catch (const InputError& error) {
                    lines[world.rank()] = error.what();
                    cudaGraph_t graph = nullptr;
                    if (captured) cudaStreamEndCapture(stream.get(), &graph);
                    cudaGetLastError();
                    throw;
                }
            });
        } catch (const InputError&) {
        }
    };
    run(false);
    EXPECT_EQ(lines[0],
              "moe_flex_max_tokens_per_rank = 22: must be at least 29, the tokens of "
              "rank 0");
    EXPECT_NE(lines[1].find("must be at least 29"), std::string::npos) << lines[1];
    config.moe_flex_max_tokens_per_rank.reset();
    run(true);
    EXPECT_TRUE(
        lines[0].starts_with("moe_flex_max_tokens_per_rank = none: must be given "))
        << lines[0];
}

// Gradients of weights that are made beside the dispatch backward read rows that came
// when the others may push again.
TEST(FlexGradients, StayWhereTheyAreReadLater) {
    NEEDS_DEVICE();
    MoEConfig config = flex_config(2, true);
    config.overlap_dispatch_backward_with_experts_wgrad = true;
    config.moe_grouped_gemm = true;
    config.finalize();
    run_ranks(2, [&](Communicator& world) {
        const auto groups = make_process_groups(world, config);
        const auto dispatcher = find_tier("tier", kOptimized.tier)
                                    .make_dispatcher(config, kOptimized.dtype, groups);
        const std::int64_t T = 5 + world.rank();
        std::vector<std::int32_t> ids;
        for (std::int64_t t = 0; t < T; ++t)
            for (const int e : {0, 6, 7}) ids.push_back(e);
        const Placement at = dispatcher->placement();
        const auto filled = [&](double value) {
            return transfer(Tensor::from<double>({T, kHidden},
                                                 std::vector<double>(T * kHidden, value)),
                            at);
        };
        const Tensor probs = Tensor::from<float>({T, 3}, std::vector<float>(3 * T, 0.5f));
        const auto sent = dispatcher->dispatch(
            filled(1), transfer(probs, {at.space, DType::f32}),
            transfer(Tensor::from({T, 3}, ids), {at.space, DType::i32}), {});
        const Rows first = dispatcher->combine_backward(filled(2), *sent.saved, {});
        const Tensor before = first.plain();
        dispatcher->dispatch_backward(before, sent.row_probs, *sent.saved, {});
        dispatcher->combine_backward(filled(3), *sent.saved, {});
        const std::int64_t N = world.rank() == 0 ? 11 : 22;
        EXPECT_EQ(to_doubles(before.first(N)), std::vector<double>(N * kHidden, 2.0));
        EXPECT_EQ(to_doubles(first.plain().first(N)),
                  std::vector<double>(N * kHidden, 2.0));
    });
}

// --------------------------------------------------------------------------- capacity

/// What the experts of each rank of two get of tokens that all choose the same.
class FlexRankCapacity : public testing::TestWithParam<ComponentSpec> {};

TEST_P(FlexRankCapacity, DropsTheLastByExpertAndRow) {
    // Experts 0 to 2 are rank 0's. Rank 0 has 3 tokens, rank 1 has 5 of the same
    // choices; T K f = 5 * 2 * 0.9 = 9 rows of the 16 that all chose.
    run_ranks(2, [&](Communicator& world) {
        MoEConfig config = small_config(2, 6, 2);
        config.expert_model_parallel_size = 2;
        config.moe_token_dispatcher_type = "flex";
        config.moe_flex_dispatcher_backend = "hybridep";
        config.moe_expert_rank_capacity_factor = 0.9;
        config.finalize();
        const auto groups = make_process_groups(world, config);
        const auto dispatcher = find_tier("tier", GetParam().tier)
                                    .make_dispatcher(config, GetParam().dtype, groups);
        const Placement at = dispatcher->placement();
        const std::int64_t T = world.rank() == 0 ? 3 : 5;
        Tensor hidden = Tensor::empty({T, 2}, DType::f64);
        Tensor map = Tensor::zeros({T, 6}, DType::u8);
        Tensor probs = Tensor::zeros({T, 6}, DType::f64);
        for (std::int64_t t = 0; t < T; ++t) {
            for (int h = 0; h < 2; ++h)
                hidden.data<double>()[2 * t + h] = double(10 * world.rank() + t + 1);
            for (const int e : {0, 2}) {
                map.data<std::uint8_t>()[6 * t + e] = 1;
                probs.data<double>()[6 * t + e] = 0.25;
            }
        }
        const auto sent = dispatcher->dispatch(transfer(hidden, at),
                                               transfer(probs, probs_placement(at)),
                                               transfer(map, at), {});
        // Expert 0 has all 8 rows, expert 2 has room for the first
        const std::vector<double> counts =
            to_doubles(transfer(sent.tokens_per_expert, {MemorySpace::host, DType::i32}));
        EXPECT_EQ(counts, (world.rank() == 0 ? std::vector<double>{8, 0, 1}
                                             : std::vector<double>{0, 0, 0}));
        const Tensor rows = sent.rows.plain();
        const std::int64_t kept = world.rank() == 0 ? 9 : 0;
        std::vector<double> expected;
        for (const double value : {1, 2, 3, 11, 12, 13, 14, 15, 1})
            if (world.rank() == 0) expected.insert(expected.end(), 2, value);
        EXPECT_EQ(to_doubles(rows.first(kept)), expected);

        // Token 0 of rank 0 comes back twice, all others once
        std::vector<double> back;
        for (std::int64_t t = 0; t < T; ++t)
            back.insert(back.end(), 2,
                        double(10 * world.rank() + t + 1) *
                            (world.rank() == 0 && t == 0 ? 2 : 1));
        EXPECT_EQ(to_doubles(dispatcher->combine(rows, {}, *sent.saved, {})), back);
        dispatcher->combine_backward(transfer(hidden, at), *sent.saved, {});
        const auto gradients =
            dispatcher->dispatch_backward(rows, sent.row_probs, *sent.saved, {});
        EXPECT_EQ(to_doubles(gradients.dhidden), back);
        std::vector<double> dprobs(T * 6, 0.0);
        for (std::int64_t t = 0; t < T; ++t) {
            dprobs[6 * t] = 0.25;
            if (world.rank() == 0 && t == 0) dprobs[2] = 0.25;
        }
        EXPECT_EQ(to_doubles(gradients.dprobs), dprobs);
        EXPECT_EQ(groups->flagged_heap->take_dropped_rows(), world.rank() == 0 ? 7 : 0);
        EXPECT_EQ(groups->flagged_heap->take_dropped_rows(), 0);
    });
}

INSTANTIATE_TEST_SUITE_P(Tiers, FlexRankCapacity,
                         testing::ValuesIn(with_dispatcher(available_suppliers(),
                                                           "flex")),
                         instance_name);

}  // namespace
}  // namespace moe::test
