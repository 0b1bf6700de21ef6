// How commands end when their output cannot go where it should, and what stays behind.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <thread>

#include "cli/files.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

class EndingsTest : public CliTest {
  protected:
    const std::string compare_ =
        "compare --scale 256 --seq-length 20 --repeats 1 --golden none "
        "--tier reference_cpu --text " +
        write("text.txt", std::string(100, 'e')) + " --report ";

    void run_into(const std::string& line, int stdout_file) const {
        available_suppliers();
        if (stdout_file < 0)
            close(STDOUT_FILENO);
        else
            dup2(stdout_file, STDOUT_FILENO);
        exit_with(split(line));
    }
    void run_without_room(const std::string& line) const {
        available_suppliers();
        const rlimit room = {1000, 1000};
        setrlimit(RLIMIT_FSIZE, &room);
        dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
        const int code = run_program(split(line));
        const bool stayed = fs::exists(path("report"));
        fs::remove_all(folder_);
        std::exit(stayed ? 99 : code);
    }
};

TEST_F(EndingsTest, SaysWhenStdoutIsFullOrClosed) {
    const testing::ExitedWithCode bad{kExitBadInput};
    for (const std::string& line :
         {compare_ + "none", std::string("bench --help"), std::string("trace"),
          std::string("info"), std::string("completion"), std::string("results --check"),
          std::string("gpu-check --help"),
          "verify " + golden("hf_mixtral") + " --dtype fp64"}) {
        EXPECT_EXIT(run_into(line, open("/dev/full", O_WRONLY)), bad,
                    "moe: stdout = No space left on device: ");
        EXPECT_EXIT(run_into(line, -1), bad, "^moe: stdout = closed: must be open\n$");
    }
}

TEST_F(EndingsTest, LeavesNoFolderWhereThereIsNoRoom) {
    EXPECT_EXIT(run_without_room(compare_ + path("report/below")),
                testing::ExitedWithCode(kExitBadInput),
                "--report = .*: must be a folder to write in .File too large.");
}

TEST_F(EndingsTest, LeavesNoFolderForFilesThatCannotAllBeWritten) {
    fs::create_directories(path("taken"));  // no file can take its place
    const auto failure = write_all(
        {{path("new/below/good"), "x"}, {path("taken"), "y"}, {path("last"), "z"}});
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->path, path("taken"));
    EXPECT_FALSE(fs::exists(path("new/below/good")));
    EXPECT_FALSE(fs::exists(path("new")));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 2) << "and the text";
}

TEST_F(EndingsTest, WritesOverNothingButFilesAndNamesTheFlag) {
    mkfifo(path("pipe").c_str(), 0600);
    write_file("--first", {path("kept"), "before"});
    fs::create_symlink(path("kept"), path("link"));
    for (const char* other : {"pipe", "link"}) {
        Outputs outputs;
        outputs.add("--json", {path("kept"), "after"});
        outputs.add("--svg", {path(other), "x"});
        try {
            outputs.write();
            ADD_FAILURE() << other;
        } catch (const InputError& error) {
            EXPECT_EQ(error.what(), "--svg = " + path(other) +
                                        ": must be a file to write: is no ordinary file");
        }
        EXPECT_EQ(read_file("kept", path("kept")), "before");
    }
    EXPECT_TRUE(fs::is_fifo(path("pipe")));
    EXPECT_TRUE(fs::is_symlink(path("link")));
}

TEST_F(EndingsTest, WritesAllOrNothingAlsoWhenInterrupted) {
    // Of the process that this test starts, too
    setenv("MOE_TEST_FOLDER", folder_.c_str(), /*overwrite=*/0);
    const fs::path folder = fs::path(std::getenv("MOE_TEST_FOLDER")) / "report";
    // Large enough that the signal comes while it is written
    const std::string text(std::size_t{1} << 26, 'x');
    const auto interrupted = [&] {
        signal(SIGINT, SIG_DFL);  // a shell's background job ignores it
        fs::remove_all(folder_);  // a signal ends it without any clean-up
        fs::create_directory(folder.parent_path());
        std::thread impatient([&] {
            while (!fs::exists(folder)) std::this_thread::yield();
            kill(getpid(), SIGINT);
        });
        write_all({{folder / "large", text}, {folder / "small", "y"}});
        impatient.join();
        std::exit(0);
    };
    EXPECT_EXIT(interrupted(), testing::KilledBySignal(SIGINT), "");
    unsetenv("MOE_TEST_FOLDER");
    EXPECT_EQ(fs::file_size(folder / "large"), text.size());
    EXPECT_EQ(read(folder / "small"), "y");
    EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 2);
}

TEST_F(EndingsTest, SaysThatNothingWasCompared) {
    const auto says = [](const std::string& line, const std::string& words) {
        const Output output = moe(line + " --seq-length 0");
        EXPECT_EQ(output.code, kExitOk) << output.err;
        EXPECT_NE(output.out.find("- no tokens: " + words), std::string::npos) << line;
        EXPECT_EQ(output.out.find("agree"), std::string::npos) << line;
    };
    const std::string compare =
        "compare --scale 256 --tier reference_cpu --report none --text " +
        path("text.txt");
    write("text.txt", "text");
    says(compare + " --repeats 1 --golden none", "no step was compared");
    says(compare + " --ranks 2", "no dispatcher was compared");
    says("trace", "nothing went through");
    says(
        "bench --preset mixtral_8x7b --scale 256 --seconds 0.01 --report none "
        "--tier reference_cpu",
        "nothing was compared");
}

}  // namespace
}  // namespace moe::test
