// Words that flags do not allow, each with one line in this program's words, whatever
// CLI11's version would say.

#include "cli/flags.h"

#include "tests/cli/support.h"

namespace moe::test {
namespace {

using Words = std::vector<std::string>;

/// A command with one flag of every kind.
struct Example {
    Example() {
        Command& command = line.add("run", "Runs.\nAnd more.");
        command.option("files", files, "").required();
        command.option("--name", name, "");
        command.option("--count", count, "");
        command.option("--list", list, "").list(3);
        const Flag& on = command.flag("--on", is_on, "");
        command
            .flag(
                "--up", "--down", [this](bool yes) { is_up = yes; }, "")
            .excludes(on);
        command.runs([this] { return runs = 7; });
    }
    int run(const std::string& words) { return line.run(split(words)); }
    /// Whether the words are refused with exactly this.
    testing::AssertionResult refuses(const std::string& words, const std::string& why) {
        try {
            run(words);
        } catch (const InputError& error) {
            if (error.what() == why) return testing::AssertionSuccess();
            return testing::AssertionFailure() << error.what();
        }
        return testing::AssertionFailure() << "taken: " << words;
    }

    CommandLine line{"moe", "", "", {"test"}};
    Words files, list;
    std::string name;
    std::int64_t count = 0;
    bool is_on = false, is_up = false;
    int runs = 0;
};

TEST(Flags, SayThatAValueIsMissing) {
    Example moe;
    for (const char* words :
         {"run f --name", "run f --name --count 3", "run f --name --count=3",
          "run f --name=", "run --name --on f", "run f --name --help"})
        EXPECT_TRUE(moe.refuses(words, "--name = missing: needs a value")) << words;
    EXPECT_TRUE(moe.refuses("run f --list", "--list = missing: needs a value"));
    EXPECT_TRUE(moe.refuses("run f --list --on", "--list = missing: needs a value"));
    EXPECT_EQ(moe.runs, 0);
    // What only looks like a flag is a value.
    EXPECT_EQ(moe.run("run f --count -3 --name=--on"), 7);
    EXPECT_EQ(moe.count, -3);
    EXPECT_EQ(moe.name, "--on");
    EXPECT_FALSE(moe.is_on);
}

TEST(Flags, SayThatTheyAreGivenAgain) {
    Example moe;
    EXPECT_TRUE(
        moe.refuses("run f --name a --name b", "--name = given 2 times: at most once"));
    EXPECT_TRUE(moe.refuses("run f --count=1 --count 1",
                            "--count = given 2 times: at most once"));
    EXPECT_EQ(moe.run("run f --on --on --list a --list b"), 7);
}

TEST(Flags, SayHowManyValuesThereMayBe) {
    Example moe;
    EXPECT_TRUE(moe.refuses("run f --list a b c d", "--list = 4 values: at most 3"));
    EXPECT_TRUE(moe.refuses("run f --list a,b c,d", "--list = 4 values: at most 3"));
    EXPECT_TRUE(moe.refuses("run f --list=a,b,c,d", "--list = 4 values: at most 3"));
    EXPECT_EQ(moe.run("run f --list a,b c --on"), 7);
    EXPECT_EQ(moe.list, (Words{"a", "b", "c"}));
}

TEST(Flags, SayWhatASwitchMayBe) {
    Example moe;
    EXPECT_TRUE(moe.refuses("run f --on=maybe", "--on = maybe: must be true or false"));
    EXPECT_TRUE(moe.refuses("run f --down=", "--down = : must be true or false"));
    EXPECT_EQ(moe.run("run f --on=false"), 7);
    EXPECT_EQ(Example().run("run f --down"), 7);
    EXPECT_FALSE(moe.is_on);
    EXPECT_FALSE(moe.is_up);
}

TEST(Flags, SayWhatMustBeThereAndWhatMustNot) {
    EXPECT_TRUE(Example().refuses("run", "files = missing: needs at least one"));
    EXPECT_TRUE(Example().refuses("run --on", "files = missing: needs at least one"));
    EXPECT_TRUE(
        Example().refuses("run f --on --up", "--up = given: must be left out with --on"));
    EXPECT_EQ(Example().run("run f --up"), 7);
}

TEST(Flags, SayWhichNameIsWrong) {
    Example moe;
    EXPECT_TRUE(moe.refuses("run f --nam x",
                            "flag = --nam: not known; did you mean "
                            "--name?"));
    EXPECT_TRUE(moe.refuses("run f --hel",
                            "flag = --hel: not known; did you mean "
                            "--help?"));
    EXPECT_TRUE(moe.refuses("run f --magic",
                            "flag = --magic: not known; moe run --help shows what is "
                            "allowed"));
    EXPECT_TRUE(moe.refuses("ru f",
                            "command = ru: did you mean run? known are run, "
                            "test"));
    EXPECT_TRUE(moe.refuses("--on",
                            "flag = --on: must come after a command; moe --help "
                            "shows what there is"));
    EXPECT_TRUE(moe.refuses("",
                            "command = missing: known are run, test; moe --help says "
                            "what they do"));
    EXPECT_TRUE(moe.refuses("run f --count x", "--count = x: must be an integer"));
}

}  // namespace
}  // namespace moe::test
