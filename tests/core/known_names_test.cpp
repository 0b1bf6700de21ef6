// Names that are nearly right, and lists that say what they may be.

#include "core/known_names.h"

#include <nlohmann/json.hpp>

#include "core/config.h"
#include "core/tier.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Words = std::vector<std::string>;

TEST(Nearest, FindsAWordThatIsNearlyRight) {
    const Words known = {"compare", "completion", "verify", "info", "fp64", "fp32"};
    EXPECT_EQ(nearest("compare", known), "compare");
    EXPECT_EQ(nearest("comapre", known), "") << "two letters of seven";
    EXPECT_EQ(nearest("compar", known), "compare");
    EXPECT_EQ(nearest("xverify", known), "verify");
    EXPECT_EQ(nearest("inof", {"info"}), "") << "two letters of four";
    EXPECT_EQ(nearest("inf", known), "info");
    EXPECT_EQ(nearest("fp63", known), "fp64") << "the first of two";
    EXPECT_EQ(nearest("abcdefxy", {"abcdefgh"}), "abcdefgh") << "two of eight";
    EXPECT_EQ(nearest("", known), "");
    EXPECT_EQ(nearest("verify", {}), "");
}

TEST(Nearest, FindsABeginningThatOneNameHas) {
    EXPECT_EQ(nearest("mixtral", {"mixtral_8x7b", "olmoe"}), "mixtral_8x7b");
    EXPECT_EQ(nearest("mixtr", {"mixtral_8x7b", "mixtral_8x22b"}), "");
    EXPECT_EQ(nearest("mixt", {"mixtral_8x7b"}), "") << "too short to say";
}

TEST(KnownNames, AreListedWithTheOneThatMayBeMeant) {
    EXPECT_TRUE(Rejects(
        [] {
            reject_unknown("--pass", "forwart", {"forward", "both"});
        },
        {"--pass = forwart: did you mean forward? allowed are forward, "
         "both"}));
    EXPECT_TRUE(Rejects(
        [] {
            reject_unknown("x", "odd", {"fast", "slow"}, "known are");
        },
        {"x = odd: known are fast, slow"}));
}

TEST(KnownNames, HelpWhereverAListIsKnown) {
    available_suppliers();
    EXPECT_TRUE(
        Rejects([] { preset("olmo", 1); }, {"preset = olmo: did you mean olmoe?"}));
    EXPECT_TRUE(Rejects([] { parse_dtype("--dtype", "fp6"); }, {"did you mean fp64?"}));
    EXPECT_TRUE(Rejects([] { find_tier("--tier", "naive-gpu"); },
                        {"did you mean naive_gpu? available tiers are reference_cpu, "}));
    MoEConfig config = small_config();
    config.activation_func = "quickgelu";
    EXPECT_TRUE(Rejects([&] { config.finalize(); },
                        {"activation_func = quickgelu: did you mean quick_gelu?"}));
}

// A list with a value that finalize() refuses would offer it in a shell.
TEST(KnownNames, OfAConfigAreThoseItTakes) {
    // Names that outlive the loops: g++ 14 believes that what is returned refers to them
    const std::string activation = "activation_func", score = "moe_router_score_function";
    for (const std::string& value : allowed_values(activation)) {
        MoEConfig config = small_config();
        config.activation_func = value;
        EXPECT_NO_THROW(config.finalize()) << value;
    }
    for (const std::string& value : allowed_values(score)) {
        MoEConfig config = small_config();
        config.moe_router_score_function = value;
        EXPECT_NO_THROW(config.finalize()) << value;
    }
    EXPECT_TRUE(allowed_values("hidden_size").empty());
}

}  // namespace
}  // namespace moe::test
