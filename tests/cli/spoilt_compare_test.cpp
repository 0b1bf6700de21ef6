// `moe compare` with a tier that is wrong, or absent: what it finds, and how it says it.

#include "cli/compare/comparison.h"
#include "core/transfer.h"
#include "tests/cli/stand_in.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

/// Passes on what it is shown, with one element of one value changed.
struct Spoiler : Observer {
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (name == target && name != "output")  // which compare takes from the layer
            observer->on_value(step, name, spoilt(view));
        else
            observer->on_value(step, name, view);
    }
    Tensor spoilt(const TensorView& view) const {
        Tensor shown = transfer(view, {MemorySpace::host, view.dtype});
        if (shown.numel() <= index) return shown;
        if (shown.dtype() == DType::i32)
            shown.data<std::int32_t>()[index] = std::int32_t(value);
        else if (shown.dtype() == DType::i64)
            shown.data<std::int64_t>()[index] = std::int64_t(value);
        else if (shown.dtype() == DType::f64)
            shown.data<double>()[index] = value;
        else
            shown.data<float>()[index] = float(value);
        return shown;
    }
    void on_time(const Steps& steps, double seconds) override {
        observer->on_time(steps, seconds);
    }

    std::string target;
    std::int64_t index = 0;
    double value = 0.0;
    Observer* observer = nullptr;
};

/// The reference behind a Spoiler, for what its router and its dispatcher show forward,
/// and for the layer's output itself.
class SpoiltTier : public StandIn {
  public:
    SpoiltTier(std::string target, std::int64_t index, double value) : StandIn("spoilt") {
        spoiler_.target = std::move(target);
        spoiler_.index = index;
        spoiler_.value = value;
    }
    std::unique_ptr<moe::Router> make_router(const MoEConfig& config, DType dtype,
                                             const TensorMap& parameters,
                                             const GroupsPtr& groups) const override {
        return std::make_unique<Router>(
            StandIn::make_router(config, dtype, parameters, groups), spoiler_);
    }
    std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype, const GroupsPtr& groups) const override {
        return std::make_unique<Dispatcher>(
            StandIn::make_dispatcher(config, dtype, groups), spoiler_);
    }

  private:
    static RunContext spoil(const RunContext& context, Spoiler& spoiler) {
        RunContext spoilt = context;
        spoiler.observer = context.observer;
        if (context.observer != nullptr) spoilt.observer = &spoiler;
        return spoilt;
    }

    struct Router : moe::Router {
        Router(std::unique_ptr<moe::Router> good, Spoiler spoiler)
            : moe::Router(good->placement()), good(std::move(good)), spoiler(spoiler) {}
        Output forward(const Tensor& hidden, const Tensor& mask,
                       const RunContext& context) override {
            return good->forward(hidden, mask, spoil(context, spoiler));
        }
        void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                      const Saved& saved, const RunContext& context) override {
            good->backward(dhidden, gradients, dprobs, saved, context);
        }
        Tensor update_expert_bias() override { return good->update_expert_bias(); }
        Tensor update_qb_beta() override { return good->update_qb_beta(); }
        void reset_global_aux_loss_tracker() override {
            good->reset_global_aux_loss_tracker();
        }
        std::unique_ptr<moe::Router> good;
        Spoiler spoiler;
    };

    struct Dispatcher : TokenDispatcher {
        Dispatcher(std::unique_ptr<TokenDispatcher> good, Spoiler spoiler)
            : TokenDispatcher(good->placement()),
              good(std::move(good)),
              spoiler(spoiler) {}
        Dispatched dispatch(const Tensor& hidden, const Tensor& probs, const Tensor& map,
                            const RunContext& context) override {
            return good->dispatch(hidden, probs, map, spoil(context, spoiler));
        }
        Tensor combine(const Tensor& rows, const Tensor& shared_output,
                       const Saved& saved, const RunContext& context) override {
            const Tensor output =
                good->combine(rows, shared_output, saved, spoil(context, spoiler));
            return spoiler.target == "output" ? spoiler.spoilt(output) : output;
        }
        Rows combine_backward(const Tensor& doutput, const Saved& saved,
                              const RunContext& context) override {
            return good->combine_backward(doutput, saved, context);
        }
        Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                    const Saved& saved,
                                    const RunContext& context) override {
            return good->dispatch_backward(drows, drow_probs, saved, context);
        }
        std::unique_ptr<TokenDispatcher> good;
        Spoiler spoiler;
    };

    Spoiler spoiler_;
};

// A registered tier stays, so these live in processes of their own.
class SpoiltCompareTest : public CliTest {
  protected:
    SpoiltCompareTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
    ~SpoiltCompareTest() override { GTEST_FLAG_SET(death_test_style, style_); }

    void compare(const std::string& value, std::int64_t index, double element) const {
        available_suppliers();  // the reference goes first
        register_tier(std::make_unique<SpoiltTier>(value, index, element));
        dup2(STDERR_FILENO, STDOUT_FILENO);  // where the death test looks
        exit_with(split(kSmall + text_ + " --tier spoilt"));
    }

    const std::string style_ = GTEST_FLAG_GET(death_test_style);
    const std::string text_ = write("text.txt", std::string(300, 'e'));
    const testing::ExitedWithCode differs_{kExitDiffers};
};

TEST_F(SpoiltCompareTest, FindsTheStepThatDiffers) {
    EXPECT_EXIT(compare("output", 2, 9.0), differs_,
                "✗ spoilt:fp32 ⑩ .*: output: worst element .0, 2.: got 9, expected");
    EXPECT_EXIT(compare("output", 2, NAN), differs_,
                "✗ spoilt:fp32 ⑩ .*: output: not finite; .* .0, 2.: got nan, expected");
    EXPECT_EXIT(compare("tokens_per_expert", 3, 77.0), differs_, "⑥ .*integers differ");
    EXPECT_EXIT(compare("tokens_per_expert", 3, 77.0), differs_,
                "✗ spoilt:fp32 ⑥ .*: tokens_per_expert: worst element .3.: got 77,");
    // How close the choice was that differs.
    EXPECT_EXIT(
        compare("topk_idx", 196, 0.0), differs_,
        "✗ spoilt:fp32 ③ routing: topk_idx: worst element .98, 0.: got 0, expected "
        "[67]; in fp64 the logits of these two experts differ by [0-9]");
}

TEST_F(SpoiltCompareTest, SaysAtTheEndWhereItBegins) {
    EXPECT_EXIT(compare("logits", 5, 9.0), differs_,
                "\n✗ spoilt:fp32 deviates: begins at ② gating\n✗ some values differ\n");
}

TEST(ColumnOutcome, BeginsAtTheFirstStepThatIsWrong) {
    ColumnOutcome column;
    EXPECT_FALSE(column.first_deviation());
    const auto spoil = [&](Step step) -> StepOutcome& {
        return column.steps[static_cast<int>(step) - 1];
    };
    spoil(Step::gating_backward).error = 1.0;
    EXPECT_EQ(column.first_deviation(), Step::gating_backward);
    spoil(Step::fc2_backward).detail = "shape: got (1), expected (2)";
    EXPECT_EQ(column.first_deviation(), Step::fc2_backward);
    spoil(Step::combine).error = 1.0;
    EXPECT_EQ(column.first_deviation(), Step::combine);
    spoil(Step::routing).integers_equal = false;
    EXPECT_EQ(column.first_deviation(), Step::routing);
    EXPECT_EQ(begins_at(Step::gating), "begins at ② gating");
}

TEST_F(SpoiltCompareTest, DoesNotLookUpAnIndexThatNoExpertHas) {
    for (double expert : {-1.0, 8.0, -1e15, 1e15})
        EXPECT_EXIT(compare("topk_idx", 196, expert), differs_,
                    "topk_idx: worst element .98, 0.: got");
}

/// A tier for a machine that is not this one.
class AbsentTier : public SpoiltTier {
  public:
    AbsentTier() : SpoiltTier("", 0, 0.0) {}
    std::string missing() const override { return "needs another machine"; }
};

class AbsentTierTest : public SpoiltCompareTest {
  protected:
    void run(const std::string& arguments) const {
        available_suppliers();  // the reference goes first
        register_tier(std::make_unique<AbsentTier>());
        dup2(STDERR_FILENO, STDOUT_FILENO);  // where the death test looks
        exit_with(split(arguments));
    }
    const std::string small_ = kSmall + text_;
};

TEST_F(AbsentTierTest, IsLeftOutWithANoteAndRefusedWhenAskedFor) {
    const testing::ExitedWithCode ok{kExitOk}, refused{kExitBadInput};
    EXPECT_EXIT(run(small_ + " --dtype fp32"), ok,
                "left out: tier = spoilt: needs another machine");
    EXPECT_EXIT(run(small_ + " --dtype fp32"), ok, "✓ all tiers agree, step by step");
    EXPECT_EXIT(run(small_ + " --tier reference_cpu,spoilt"), refused,
                "moe: --tier = spoilt: needs another machine");
    EXPECT_EXIT(run(small_ + " --spec experts=spoilt"), refused,
                "^moe: --spec experts = spoilt: needs another machine");
    EXPECT_EXIT(run("trace --tier spoilt"), refused,
                "moe: --tier = spoilt: needs another machine");
    EXPECT_EXIT(run("info"), ok, "✗ spoilt          fp32; needs another machine");
}

}  // namespace
}  // namespace moe::test
