// atomics_test.cu: what many threads add to must be added to atomically. The executor's
// threads lose no update of a plain +=, so that the atomics are counted. Executor only.

#include <gtest/gtest.h>

#include <cmath>

#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "tests/conformance/device_array.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kTokens = 12, kExperts = 5, kTopk = 2;  // (S, B) = (4, 3)
const ComponentSpec kNaive{"naive_gpu", DType::f32};

/// Atomic functions that kernels call in `action`.
template <typename Action>
std::int64_t atomics(Action&& action) {
    const std::uint64_t before = cuda_on_cpu::atomic_count();
    action();
    return std::int64_t(cuda_on_cpu::atomic_count() - before);
}

Tensor padding_of(const std::vector<std::int64_t>& padded) {
    Tensor mask = Tensor::zeros({4, 3}, DType::u8);
    for (std::int64_t t : padded) mask.data<std::uint8_t>()[t] = 1;
    return mask;
}

__global__ void count_kernel(int* counts) {
    atomicAdd(counts, 1);
    if (threadIdx.x == 0) atomicCAS(counts + 1, 0, 7);
    if (threadIdx.x == 1) atomicMax(counts + 1, 9);
}

TEST(Atomics, AreCounted) {
    DeviceArray<int> counts(std::vector<int>{0, 0});
    EXPECT_EQ(atomics([&] {
                  gpu::launch("count", count_kernel, {17, 3}, counts.data());
              }),
              17 * 5);
    EXPECT_EQ(counts.to_host(), (std::vector<int>{51, 9}));
}

TEST(Atomics, RowsOfAnExpertAreCountedByManyThreads) {
    Tensor map = Tensor::zeros({kTokens, kExperts}, DType::u8);
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < map.numel(); i += 1 + i % 3, ++rows)
        map.data<std::uint8_t>()[i] = 1;
    const auto ops = make_row_ops(kNaive);
    EXPECT_EQ(atomics([&] { ops->make_row_map(map); }), rows);
}

TEST(Atomics, LossesCountEachChoiceOfATokenThatIsNoPadding) {
    MoEConfig c = small_config(4, kExperts, kTopk);
    c.moe_router_load_balancing_type = {"aux_loss"};
    c.moe_aux_loss_coeff = {0.5};
    c.finalize();
    const auto ops = make_router_ops(kNaive);
    const Tensor logits = random_tensor({kTokens, kExperts}, 1);
    for (const auto& padded : {std::vector<std::int64_t>{}, {2, 3, 11}})
        EXPECT_EQ(atomics([&] {
                      ops->auxiliary_losses(logits, 4, 3, padding_of(padded), c, 1.0);
                  }),
                  kTopk * (kTokens - std::int64_t(padded.size())));
}

TEST(Atomics, TheRouterCountsTokensForItsBias) {
    MoEConfig c = small_config(4, kExperts, kTopk);
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    const auto router =
        make_router(kNaive, c, {{"router.weight", random_tensor({kExperts, 4}, 1)}});
    const Tensor hidden = transfer(random_tensor({4, 3, 4}, 2), router->placement());
    const Tensor mask = transfer(padding_of({5}), router->placement());
    EXPECT_EQ(atomics([&] { router->forward(hidden, mask, {.training = true}); }),
              kTopk * (kTokens - 1));
}

TEST(Atomics, TheFirstOfManyBadLogitsIsFound) {
    MoEConfig c = small_config(4, 4, kTopk);
    const auto router = make_router(kNaive, c, {{"router.weight", identity_matrix(4)}});
    Tensor hidden = random_tensor({4, 3, 4}, 2);
    for (std::int64_t i : {17, 42, 18}) hidden.data<float>()[i] = INFINITY;
    const Tensor there = transfer(hidden, router->placement());
    EXPECT_GT(atomics([&] {
                  EXPECT_TRUE(Rejects([&] { router->forward(there, {}, {}); },
                                      {"logits[token 4, expert 0]"}));
              }),
              2);
}

TEST(Atomics, ChoicesWithoutASlotAreCounted) {
    constexpr std::int64_t E = 6;
    MoEConfig c = small_config(4, E, kTopk);
    c.moe_token_dispatcher_type = "flex";
    c.expert_model_parallel_size = 2;
    c.finalize();
    const auto dispatch_all = [&](distributed::Communicator& world) {
        const auto dispatcher =
            find_tier("tier", kNaive.tier)
                .make_dispatcher(c, kNaive.dtype, make_process_groups(world, c));
        Tensor map = Tensor::zeros({kTokens, E}, DType::u8);
        std::fill_n(map.data<std::uint8_t>(), map.numel(), 1);
        const Placement place = dispatcher->placement();
        EXPECT_THROW(dispatcher->dispatch(transfer(random_tensor({kTokens, 4}, 1), place),
                                          transfer(random_tensor({kTokens, E}, 2), place),
                                          transfer(map, place), {}),
                     InternalError);
    };
    EXPECT_EQ(atomics([&] { distributed::run_ranks(2, dispatch_all); }),
              2 * kTokens * (E - kTopk));
}

}  // namespace
}  // namespace moe::test
