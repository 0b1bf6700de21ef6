#include "cli/compare/changed_experts.h"

#include <algorithm>

#include "cli/compare/comparison.h"
#include "cli/compare/judge.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

TEST(ChangedExperts, AreCountedByTokenWithTheirGaps) {
    // Token 0: 3 in place of 1; token 1: another order; token 2: both others
    const Tensor expected = Tensor::from<double>({3, 2}, {0, 1, 2, 3, 0, 1});
    const Tensor got = Tensor::from<double>({3, 2}, {3, 0, 3, 2, 2, 3});
    const Tensor keys = Tensor::from<double>(
        {3, 4}, {5.0, 3.0, 1.0, 2.0, 0, 1, 2, 3, 1.0, 0.5, 0.0, 0.25});
    const ChangedExperts changed = count_changed_experts(got, expected, keys);
    EXPECT_EQ(changed.tokens, 2);
    EXPECT_EQ(changed.closest, 0.25);
    EXPECT_EQ(changed.farthest, 1.0);
    EXPECT_EQ(in_words(changed),
              "     2: in fp64 the experts exchanged are from 2.5e-01 to 1.0e+00 apart");
    EXPECT_EQ(in_words(count_changed_experts(expected, expected, keys)), "     0");
    EXPECT_EQ(in_words({1, 0.5, 0.5}),
              "     1: in fp64 the experts exchanged are 5.0e-01 apart");
}

TEST(ChangedExperts, HaveTheKeysThatChose) {
    MoEConfig config = small_config(4, 2, 1, 5);
    const Tensor logits = Tensor::from<double>({1, 2}, {0.0, 100.0});
    EXPECT_EQ(to_doubles(selection_keys(logits, {}, config)),
              (std::vector<double>{0.0, 100.0}));
    config.moe_router_score_function = "sigmoid";
    EXPECT_EQ(to_doubles(selection_keys(logits, {}, config)),
              (std::vector<double>{0.5, 1.0}));
    const Tensor bias = Tensor::from<double>({2}, {0.25, -2.0});
    EXPECT_EQ(to_doubles(selection_keys(logits, bias, config)),
              (std::vector<double>{0.75, -1.0}));
}

TEST(ChangedExperts, AreThoseOfAllMicroBatches) {
    const auto recorded = [](double second) {
        Recorded all;
        for (const double expert : {2.0, second}) {
            std::map<Step, TensorMap> values;
            values[Step::gating]["logits"] = Tensor::from<double>({1, 3}, {1, 4, 6});
            values[Step::routing]["topk_idx"] = Tensor::from<double>({1, 1}, {expert});
            all.of_micro_batch.push_back(values);
        }
        return all;
    };
    const ChangedExperts changed =
        count_changed_experts(recorded(1), recorded(2), {}, small_config(4, 3, 1, 5));
    EXPECT_EQ(changed.tokens, 1);
    EXPECT_EQ(changed.closest, 2.0);
}

// A router of bf16 is judged by one of bf16; whom it chose otherwise, fp64 says.
TEST(ChangedExperts, AreThoseThatFp64DidNotChoose) {
    NEEDS_DEVICE();
    available_tiers();
    constexpr std::int64_t kTokens = 61, kTopk = 3;
    ComparisonRequest request;
    request.config = small_config(12, 40, kTopk, 4);
    request.config.finalize();
    request.text = {"text", kTokens, 1, {}};
    for (std::int64_t t = 0; t < kTokens; ++t)
        request.text.bytes.push_back(std::uint8_t(t));
    request.columns = {ModuleSpec::uniform({"naive_gpu", DType::bf16})};
    request.repeats = 1;
    const Comparison comparison = run_comparison(request);
    const auto chosen = [&](int column, std::int64_t t) {
        const Values all = to_doubles(comparison.columns.at(column).topk_idx);
        Values mine(all.begin() + t * kTopk, all.begin() + (t + 1) * kTopk);
        std::sort(mine.begin(), mine.end());
        return mine;
    };
    std::int64_t differ = 0;
    for (std::int64_t t = 0; t < kTokens; ++t) differ += chosen(0, t) != chosen(1, t);
    EXPECT_GT(differ, 0);
    EXPECT_EQ(comparison.columns[1].changed.tokens, differ);
}

}  // namespace
}  // namespace moe::test
