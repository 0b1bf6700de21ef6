// Step ⑩ over the shards of an expert: in which dtype they meet.

#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

class CombineTest : public testing::TestWithParam<ComponentSpec> {};

/// Bytes that `action` sends to the other rank of two by reduce-scatter.
template <typename Action>
std::int64_t reduced_bytes(distributed::Communicator& world, Action&& action) {
    world.ledger().reset_sent();
    action();
    return world.ledger().sent()["reduce_scatter"][1 - world.rank()];
}

/// bf16 shards are summed in fp32, the dtype of the probabilities: 4 bytes an element
/// travel. Their gradients are bf16, as Megatron's. Source: token_dispatcher.py,
/// combine_preprocess, combine_postprocess.
TEST_P(CombineTest, ShardsAreSummedInTheDtypeOfProbs) {
    constexpr std::int64_t T = 5, H = 6, E = 3;
    for (const char* type : {"alltoall", "allgather"}) {
        const MoEConfig c = on_grid(small_config(H, E, E), {2, 1, 1, 2, 2}, type);
        distributed::run_ranks(2, [&](distributed::Communicator& world) {
            const auto dispatcher =
                find_tier("tier", GetParam().tier)
                    .make_dispatcher(c, GetParam().dtype, make_process_groups(world, c));
            const Placement place = dispatcher->placement();
            Tensor map = Tensor::zeros({T, E}, DType::u8);
            std::fill_n(map.data<std::uint8_t>(), T * E, 1);
            const Tensor hidden = transfer(random_tensor({T, H}, 1), place);
            const auto sent = dispatcher->dispatch(
                hidden, transfer(random_tensor({T, E}, 2), probs_placement(place)),
                transfer(map, place), {});
            // AlltoAll sums the rows of each token's experts, AllGather the tokens.
            const std::int64_t rows = std::string(type) == "alltoall" ? T * E : T;
            const auto element = std::int64_t(size_of(place.dtype)),
                       prob = std::int64_t(size_of(probs_placement(place).dtype));
            EXPECT_EQ(
                reduced_bytes(
                    world,
                    [&] { dispatcher->combine(sent.rows.values, {}, *sent.saved, {}); }),
                rows * H * prob)
                << type;
            const Tensor drows =
                dispatcher->combine_backward(hidden, *sent.saved, {}).values;
            EXPECT_EQ(reduced_bytes(world,
                                    [&] {
                                        dispatcher->dispatch_backward(
                                            drows, sent.row_probs, *sent.saved, {});
                                    }),
                      rows * H * element + T * E * prob)
                << type;
        });
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, CombineTest,
                         testing::ValuesIn(with_dispatcher(available_suppliers(),
                                                           "allgather")),
                         instance_name);

}  // namespace
}  // namespace moe::test
