// How commands end when their output cannot go where it should, and what stays behind.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "tests/cli/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

class EndingsTest : public CliTest {
  protected:
    const std::string compare_ =
        "compare --scale 256 --seq-length 20 --repeats 1 --tier reference_cpu --text " +
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
        std::exit(fs::exists(path("report")) ? 99 : code);
    }
};

TEST_F(EndingsTest, SaysWhenStdoutIsFullOrClosed) {
    const testing::ExitedWithCode bad{kExitBadInput};
    for (const std::string& line : {compare_ + "none", std::string("trace"),
                                    std::string("info"), std::string("completion"),
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
    says(compare + " --repeats 1", "no step was compared");
    says(compare + " --ranks 2", "no dispatcher was compared");
    says("trace", "nothing went through");
    says(
        "bench --preset mixtral_8x7b --scale 256 --seconds 0.01 --report none "
        "--tier reference_cpu",
        "nothing was compared");
}

}  // namespace
}  // namespace moe::test
