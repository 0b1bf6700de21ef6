// Where a router's own rounding decides: when the reference follows, and when not.

#include "cli/compare/own_choice.h"

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/cli/stand_in.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

Recorded recorded(const std::vector<double>& logits,
                  const std::vector<double>& topk_idx) {
    Recorded result;
    result.of_micro_batch.resize(1);
    result.of_micro_batch[0][Step::gating]["logits"] = Tensor::from({3, 4}, logits);
    result.of_micro_batch[0][Step::routing]["topk_idx"] = Tensor::from({3, 2}, topk_idx);
    return result;
}

class OwnChoice : public testing::Test {
  protected:
    OwnChoice() : config_(small_config(4, 4, 2, 5)) { config_.finalize(); }
    OwnChoices of(const std::vector<double>& logits,
                  const std::vector<double>& topk_idx) const {
        return own_choices(recorded(logits, topk_idx), reference_, {}, config_);
    }

    MoEConfig config_;
    // Experts 1 and 3 of the second token nearly tie
    const Recorded reference_ =
        recorded({4, 3, 2, 1, 0, 2.001, 5, 2, 1, 2, 3, 4}, {0, 1, 2, 1, 3, 2});
};

TEST_F(OwnChoice, IsWhatTheReferenceMakesOfTheLogits) {
    const OwnChoices own =
        of({4, 3, 2, 1, 0, 2, 5, 2.001, 1, 2, 3, 4}, {0, 1, 2, 3, 3, 2});
    EXPECT_EQ(own.tokens, 1);
    ASSERT_EQ(own.topk_idx.size(), 1u);
    EXPECT_EQ(to_doubles(own.topk_idx[0]), (std::vector<double>{0, 1, 2, 3, 3, 2}));
}

TEST_F(OwnChoice, IsNoneWhereNothingDiffers) {
    const OwnChoices own =
        of({4, 3, 2, 1, 0, 2.002, 5, 2, 1, 2, 3, 4}, {0, 1, 2, 1, 3, 2});
    EXPECT_EQ(own.tokens, 0);
    EXPECT_TRUE(own.topk_idx.empty());
}

// The logits tie, and a tie goes to the lower expert: this router has another rule.
TEST_F(OwnChoice, DoesNotExcuseAnotherRule) {
    EXPECT_EQ(of({4, 3, 2, 1, 0, 2, 5, 2, 1, 2, 3, 4}, {0, 1, 2, 3, 3, 2}).tokens, 0);
    EXPECT_EQ(of({4, 3, 2, 1, 0, 2, 5, 2, 1, 2, 3, 4}, {0, 1, 2, 1, 3, 2}).tokens, 0);
    // One token is excused, and another is not
    EXPECT_EQ(of({4, 3, 2, 1, 0, 2, 5, 2.001, 1, 2, 3, 4}, {0, 1, 2, 3, 2, 3}).tokens, 0);
}

TEST_F(OwnChoice, IsNoneWhereOthersThanLogitsChoose) {
    config_.moe_router_load_balancing_type = {"quantile_balancing"};
    EXPECT_EQ(of({4, 3, 2, 1, 0, 2, 5, 2.001, 1, 2, 3, 4}, {0, 1, 2, 3, 3, 2}).tokens, 0);
}

/// A router of bf16 whose first two experts have weights that are off by half a rounding.
class NudgedTier : public StandIn {
  public:
    NudgedTier() : StandIn("nudged") {}
    std::vector<DType> dtypes(ComponentKind kind) const override {
        if (kind == ComponentKind::router) return {DType::bf16};
        return StandIn::dtypes(kind);
    }
    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters,
                                        const GroupsPtr& groups) const override {
        TensorMap nudged = parameters;
        Tensor weight = parameters.at("router.weight").clone();
        for (std::int64_t i = 0; i < 2 * weight.dim(1); ++i)
            weight.data<float>()[i] *= 1.0f + 0x1p-8f;
        nudged["router.weight"] = weight;
        return StandIn::make_router(config, dtype, nudged, groups);
    }
};

// The whole way: fp64 around a router of bf16 runs again with these experts.
TEST_F(CliTest, ComparesWhereItsOwnRoundingDecides) {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    std::string letters;
    const Rng rng(1, 1);
    for (int i = 0; i < 400; ++i) letters += char('!' + rng.below(i, 90));
    const std::string line =
        "compare --scale 256 --seq-length 131 --micro-batch-size 3 --repeats 1 "
        "--golden none --report none --tier reference_cpu --dtype fp32 "
        "--spec router=nudged:bf16 --seed 1 --text " +
        write("text.txt", letters);
    const auto compare = [&] {
        available_suppliers();
        register_tier(std::make_unique<NudgedTier>());
        dup2(STDERR_FILENO, STDOUT_FILENO);
        exit_with(split(line));
    };
    EXPECT_EXIT(compare(), testing::ExitedWithCode(kExitOk),
                "of [1-9][0-9]* its own\n? *rounding of the logits decides");
}

}  // namespace
}  // namespace moe::test
