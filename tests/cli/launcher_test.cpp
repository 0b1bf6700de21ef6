// launcher_test.cpp: ./moe itself, in a folder of its own, with a compiler, a package
// manager and a ninja that only pretend.

#include <sys/wait.h>

#include <filesystem>

#include "cli/places.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

testing::AssertionResult Says(const std::string& text, const std::string& words) {
    if (text.find(words) != std::string::npos) return testing::AssertionSuccess();
    return testing::AssertionFailure() << text << " lacks " << words;
}

class LauncherTest : public CliTest {
  protected:
    void SetUp() override {
        const fs::path launcher = fs::path(project_root()) / "moe";
        if (!fs::exists(launcher) || std::system("bash -c true") != 0)
            GTEST_SKIP() << "needs the source tree and bash";
        fs::create_directories(path("clone"));
        fs::copy_file(launcher, path("clone/moe"));
        pretend("dpkg-query", "echo install ok installed");
        pretend("apt-get", "exit 1");
        pretend("g++", "echo 14");
        pretend("cmake", R"(mkdir -p build/host
echo "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" >build/host/CMakeCache.txt
touch build/host/build.ninja)");
        // One file of three is done after each "second".
        pretend("ninja", R"(case "$*" in
    *build.ninja*) exit ;;
    *" -n "*) [ -e "$2/cli/moe" ] || printf '[%s/3] Building CXX file\n' 1 2 3; exit ;;
esac
[ "$NINJA_STATUS" = "moe-progress %f %t %e " ] || exit 0
mkdir -p "$2/cli"
sleep "${NINJA_SLEEPS:-0}"
for file in 1 2 3; do echo "moe-progress $file 3 ${file}0.2 Building CXX $file"; done
[ -z "$NINJA_FAILS" ] || { echo "file.cpp:3: error: expected ';'"; exit 1; }
printf '#!/bin/sh\necho moe "$@"\n' >"$2/cli/moe"
chmod +x "$2/cli/moe")");
    }

    void pretend(const std::string& name, const std::string& script) {
        fs::create_directories(path("bin"));
        write("bin/" + name, "#!/bin/bash\n" + script + "\n");
        fs::permissions(path("bin/" + name), fs::perms::owner_all);
    }

    /// What a shell says to this, with the pretended programs in front.
    Output shell(const std::string& script) {
        write("script", "cd '" + path("clone") + "'\nexport PATH='" + path("bin") +
                            "':$PATH\nunset CXX CUDACXX\n" + script + "\n");
        const std::string out = path("out"), err = path("err");
        const int status = std::system(
            ("bash '" + path("script") + "' >'" + out + "' 2>'" + err + "'").c_str());
        return {WEXITSTATUS(status), read(out), read(err)};
    }
};

TEST_F(LauncherTest, BuildsOnceAndSaysHowFarItIs) {
    const Output first = shell("./moe info --fields");
    EXPECT_EQ(first.code, 0) << first.err;
    EXPECT_EQ(first.out, "moe info --fields\n");
    EXPECT_TRUE(Says(first.err, "building moe (preset host): 3 files, about "));
    EXPECT_TRUE(Says(first.err, "building moe: 1 of 3 files, about 20 s more\n"));
    EXPECT_TRUE(Says(first.err, "building moe: 2 of 3 files, about 10 s more\n"));
    EXPECT_TRUE(Says(first.err, "building moe: 3 of 3 files\n"));
    const Output second = shell("./moe info");
    EXPECT_EQ(second.out, "moe info\n");
    EXPECT_EQ(second.err, "");
}

TEST_F(LauncherTest, ShowsWhatTheCompilerSaysWhenItFails) {
    const Output output = shell("NINJA_FAILS=1 ./moe info");
    EXPECT_EQ(output.code, 2);
    EXPECT_EQ(output.out, "");
    EXPECT_TRUE(Says(output.err, "file.cpp:3: error: expected ';'\n"));
    EXPECT_TRUE(Says(output.err, "moe: build = failed: see the lines above\n"));
}

TEST_F(LauncherTest, NoticesThatTheCloneWasMovedOrCopied) {
    EXPECT_EQ(shell("./moe info").code, 0);
    const Output copied = shell(
        "cp -r . ../copy\ncd ../copy\necho '#!/bin/sh\necho old' >build/host/cli/moe\n"
        "./moe info");
    EXPECT_EQ(copied.out, "moe info\n");
    EXPECT_TRUE(Says(copied.err, "build/host was made for " + path("clone") + ": "));
    const Output moved = shell("mv ../copy ../moved\ncd ../moved\n./moe info");
    EXPECT_EQ(moved.out, "moe info\n");
    EXPECT_TRUE(Says(moved.err, "build/host was made for " + path("copy") + ": "));
    EXPECT_EQ(shell("cd ../moved\n./moe info").err, "");
}

TEST_F(LauncherTest, TwoAtOnceWaitForEachOther) {
    const Output both =
        shell("NINJA_SLEEPS=0.5 ./moe first &\nsleep 0.25\n./moe second\nwait");
    EXPECT_EQ(both.out, "moe first\nmoe second\n");
    EXPECT_TRUE(Says(both.err, "waiting for another command that builds"));
    // Only the first had anything to build.
    const std::string once = "building moe (preset host)";
    EXPECT_EQ(both.err.find(once), both.err.rfind(once));
}

class LauncherTests : public LauncherTest {
  protected:
    /// `./moe test`, whose tests are those of failing_tests.
    Output test(const std::string& arguments) {
        const fs::path program = fs::path(own_program()).parent_path() / "failing_tests";
        pretend("getconf", "echo 2");  // cores
        pretend("program", "exec '" + program.string() + "' --gtest_print_time=0 \"$@\"");
        return shell(
            "mkdir -p build/host/tests; cp ../bin/program build/host/tests/moe_tests\n"
            "./moe test " +
            arguments);
    }
};

TEST_F(LauncherTests, TwoProcessesAreOneRun) {
    const Output good = test("--gtest_filter='Good.*:Shards.*'");
    EXPECT_EQ(good.code, 0) << good.err;
    EXPECT_TRUE(Says(good.out, "[==========] 3 of 3 tests ran, in two processes. ("));
    EXPECT_TRUE(good.out.ends_with("[  PASSED  ] 3 tests.\n")) << good.out;

    const Output bad = test("--gtest_filter='Good.*:Bad.Fails*'");
    EXPECT_EQ(bad.code, 1);
    EXPECT_TRUE(Says(bad.out, "Expected equality of these values:\n  1\n  2\n"));
    EXPECT_TRUE(Says(bad.out, "\n[  FAILED  ] Bad.FailsOnce\n"));
    EXPECT_TRUE(Says(bad.out, "[  PASSED  ] 1 tests.\n[  FAILED  ] Bad.Fails"));
    EXPECT_TRUE(Says(bad.out, "Failed: 2. To run one again: ./moe test --gtest_filter="));
}

TEST_F(LauncherTests, OneOfTwoProcessesCrashes) {
    const Output output = test("--gtest_filter='Good.*:Crash.Aborts'");
    EXPECT_EQ(output.code, 128 + 6);
    EXPECT_TRUE(Says(output.err, "[ CRASHED  ] Crash.Aborts: SIGABRT\n"));
    EXPECT_TRUE(Says(output.out, "[==========] 1 of 2 tests ran, in two processes. ("));
}

TEST_F(LauncherTests, OneProcessWhereAnArgumentAsksForMore) {
    const Output output = test("--gtest_filter='Good.*' --gtest_repeat=2");
    EXPECT_EQ(output.code, 0);
    EXPECT_TRUE(Says(output.out, "[==========] 1 test from 1 test suite ran.\n"));
}

}  // namespace
}  // namespace moe::test
