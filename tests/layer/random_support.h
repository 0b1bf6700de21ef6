/// @file
/// What the suites of random numbers share: that tokens keep theirs over ranks, and a
/// router's forward and backward.
#pragma once

#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "tests/support.h"

namespace moe::test {

using Values = std::vector<double>;
inline constexpr Placement kFp32Host{MemorySpace::host, DType::f32};
inline constexpr std::int64_t kSeqLength = 7, kBatch = 3, kWidth = 5, kExperts = 6;

/// What one rank of its own draws.
template <typename Numbers>
Values draw_alone(const MoEConfig& config, std::int64_t seq_len = kSeqLength,
                  std::int64_t micro_batch = kBatch) {
    return to_doubles(Numbers(config, nullptr, kFp32Host).of(seq_len, micro_batch));
}

/// TP and CP cut the sequence, DP the batch.
/// @param width  numbers of a token
template <typename Numbers>
void expect_tokens_keep_numbers(MoEConfig config, std::int64_t width) {
    const Values whole = draw_alone<Numbers>(config, 4 * kSeqLength, 2 * kBatch);
    config.tensor_model_parallel_size = config.context_parallel_size = 2;
    config.sequence_parallel = true;
    std::vector<Values> drawn(8);
    distributed::run_ranks(8, [&](distributed::Communicator& world) {
        const auto groups = distributed::make_process_groups(world, config);
        drawn[world.rank()] =
            to_doubles(Numbers(config, groups, kFp32Host).of(kSeqLength, kBatch));
    });
    for (std::int64_t rank = 0; rank < 8; ++rank)
        for (std::int64_t s = 0; s < kSeqLength; ++s)
            for (std::int64_t b = 0; b < kBatch; ++b)
                for (std::int64_t i = 0; i < width; ++i) {
                    const std::int64_t t =
                        (rank % 4 * kSeqLength + s) * 2 * kBatch + rank / 4 * kBatch + b;
                    ASSERT_EQ(drawn[rank][(s * kBatch + b) * width + i],
                              whole[t * width + i])
                        << rank << " " << s << " " << b << " " << i;
                }
}

class RandomRouterTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    struct Run {
        Router::Output output;
        ValueRecorder values;
        Tensor dhidden;
        TensorMap gradients;
    };
    void run(Run& run, const MoEConfig& config, const Tensor& weight,
             const Tensor& hidden, bool training = true) {
        const auto router = make_router(GetParam(), config, {{"router.weight", weight}});
        const RunContext context{.training = training, .observer = &run.values};
        const Tensor x = transfer(hidden, router->placement());
        run.output = dense_forward(*router, x, {}, context);
        const std::int64_t T = kSeqLength * kBatch;
        const Tensor dprobs = transfer(random_tensor({T, kExperts}, 4),
                                       probs_placement(router->placement()));
        run.dhidden =
            transfer(Tensor::zeros({T, hidden.dim(2)}, DType::f32), router->placement());
        dense_backward(*router, run.dhidden, run.gradients, dprobs, *run.output.saved,
                       context);
    }
};

}  // namespace moe::test
