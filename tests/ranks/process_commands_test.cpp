// `moe compare`, `trace` and `verify` with ranks that are processes: what they say and
// how they end is what one process of threads does.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>

#include "core/safetensors.h"
#include "tests/ranks/job.h"

namespace moe::test {
namespace {

/// `moe` with the words of this line.
Outcome run_moe(const std::string& line) {
    std::istringstream words(line);
    return Job({std::istream_iterator<std::string>(words), {}}, MOE_PROGRAM).finish();
}

// Spinning, they would take the cores that others need.
TEST(Program, LetsThreadsSleepWhileTheyWait) {
    const auto policy = [] {
        setenv("OMP_DISPLAY_ENV", "true", 1);
        const Outcome outcome = run_moe("info");
        unsetenv("OMP_DISPLAY_ENV");
        const std::size_t at = outcome.output.rfind("OMP_WAIT_POLICY = '");
        return at == std::string::npos ? outcome.output
                                       : outcome.output.substr(at + 19, 6);
    };
    const char* mine = getenv("OMP_WAIT_POLICY");
    const std::string before = mine == nullptr ? "" : mine;
    unsetenv("OMP_WAIT_POLICY");
    EXPECT_EQ(policy(), "PASSIV");
    setenv("OMP_WAIT_POLICY", "active", 1);
    EXPECT_EQ(policy(), "ACTIVE") << "who asks for it gets it";
    mine == nullptr ? unsetenv("OMP_WAIT_POLICY")
                    : setenv("OMP_WAIT_POLICY", before.c_str(), 1);
}

TEST(Compare, IsTheSameOverProcesses) {
    NEEDS_MPI();
    const Outcome outcome = run_moe(
        "compare --spawn 2 --scale 64 --seq-length 12 --micro-batch-size 2 "
        "--report none");
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_EQ(outcome.count("Ranks   2 processes over MPI"), 1) << outcome.output;
    EXPECT_EQ(outcome.count("✓ all dispatchers and tiers agree"), 1) << outcome.output;
}

TEST(Compare, PrintsANoteOnceForAllProcesses) {
    NEEDS_MPI();
    const std::string script =
        testing::TempDir() + "moe_script" + std::to_string(getpid());
    std::ofstream(script) << "--swiglu --hidden-size 16 --num-experts 4 --lr 0.1 "
                             "--ffn-hidden-size 24";
    const Outcome good = run_moe(
        "compare --spawn 2 --seq-length 6 --micro-batch-size 2 --report none --dtype "
        "fp64 "
        "--micro-batches 2 --moe-token-dispatcher-type alltoall "
        "--moe-router-score-function sigmoid --moe-router-enable-expert-bias "
        "--megatron-args " +
        script);
    std::filesystem::remove(script);
    EXPECT_EQ(good.code, 0) << good.output;
    EXPECT_EQ(good.count("moe: note: --megatron-args: not the layer's: --lr"), 1)
        << good.output;
    EXPECT_EQ(good.count("  main_grad of router.weight "), 1) << good.output;
    EXPECT_EQ(good.count("  expert_bias_updated "), 1) << good.output;
    EXPECT_EQ(good.count("✓ all dispatchers and tiers agree"), 1) << good.output;
}

TEST(Compare, RefusesBeforeItStartsProcesses) {
    const auto refuses = [](const std::string& flags, const std::string& line) {
        const Outcome outcome = run_moe("compare --report none " + flags);
        EXPECT_EQ(outcome.code, 2) << outcome.output;
        EXPECT_EQ(outcome.count("moe: " + line), 1) << outcome.output;
    };
    refuses("--spawn 0", "--spawn = 0: must be from 1 to 64");
    refuses("--spawn 2 --ranks 4", "--ranks = 4: must be left out, or 2");
    refuses("--spawn 3", "--ranks = 3: must divide num_moe_experts (8)");
    refuses("--processes", "--processes = no launcher: start with mpirun");
    refuses("--processes --spawn 2", "--spawn = 2: must be left out");
}

/// Every line of the first in the second, as often: an MPI may add words of its own.
void check_lines(const std::string& whole, const Outcome& outcome) {
    std::istringstream lines(whole);
    std::map<std::string, int> often;
    for (std::string line; std::getline(lines, line);)
        if (!line.empty()) ++often[line];
    EXPECT_GT(often.size(), 10u) << whole;
    std::istringstream others("\n" + outcome.output);
    for (std::string line; std::getline(others, line);)
        if (const auto found = often.find(line); found != often.end()) --found->second;
    for (const auto& [line, left] : often)
        EXPECT_EQ(left, 0) << line << " in\n" << outcome.output;
}

std::string golden_ranks(const std::string& name) {
    return fmt::format("{}/tests/golden/ranks/{}.safetensors", MOE_SOURCE_DIR, name);
}

const std::string kTwoRanks = golden_ranks("ep2_alltoall");

TEST(Trace, IsTheSameOverProcesses) {
    NEEDS_MPI();
    const std::string flags =
        " 3 --moe-token-dispatcher-type flex --num-experts 6 --seq-length 5 "
        "--micro-batch-size 3";
    const Outcome threads = run_moe("trace --ranks" + flags);
    const Outcome processes = run_moe("trace --spawn" + flags);
    EXPECT_EQ(threads.code, 0) << threads.output;
    EXPECT_EQ(processes.code, 0) << processes.output;
    check_lines(threads.output, processes);
}

TEST(Verify, IsTheSameOverProcesses) {
    NEEDS_MPI();
    const std::string line =
        "verify --dtype fp64 --moe-token-dispatcher-type all " + kTwoRanks;
    const Outcome processes = run_moe(line + " --spawn=2");
    EXPECT_EQ(processes.code, 0) << processes.output;
    check_lines(run_moe(line).output, processes);
}

/// A copy of the case of two ranks with something changed.
class ChangedCase {
  public:
    explicit ChangedCase(
        const std::function<void(TensorMap& tensors, std::string& config)>& change) {
        const SafetensorsFile file = SafetensorsFile::open(kTwoRanks);
        TensorMap tensors;
        for (const std::string& name : file.names()) tensors[name] = file.tensor(name);
        auto metadata = file.metadata();
        change(tensors, metadata.at("moe_config"));
        save_safetensors(path, tensors, metadata);
    }
    ~ChangedCase() { std::filesystem::remove(path); }
    const std::string path =
        fmt::format("{}moe_changed_{}", testing::TempDir(), getpid());
};

const std::string kOneColumn = "--tier reference_cpu --dtype fp32 ";

TEST(Verify, NamesTheProcessThatDiffers) {
    NEEDS_MPI();
    const ChangedCase other([](TensorMap& tensors, std::string&) {
        tensors.at("rank.1.expect.output").data<double>()[5] += 0.5;
    });
    const Outcome outcome = run_moe("verify --spawn 2 " + kOneColumn + other.path);
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_EQ(outcome.count("    ✗ rank 1 expect.output "), 1) << outcome.output;
    EXPECT_EQ(outcome.count("    ✓ rank 0 expect.output "), 1) << outcome.output;
}

// Logits of rank 1 that are none: it speaks itself, and ends the other.
TEST(Verify, EndsWithTheProcessThatCannotGoOn) {
    NEEDS_MPI();
    const ChangedCase overflow([](TensorMap& tensors, std::string& config) {
        Tensor& hidden = tensors.at("rank.1.input.hidden_states");
        std::fill_n(hidden.data<float>(), hidden.numel(), 3e38f);
        config.replace(config.find("fp64"), 4, "fp32");  // the router's
    });
    const Outcome outcome = run_moe("verify --spawn 2 " + kOneColumn + overflow.path);
    EXPECT_NE(outcome.code, 0) << outcome.output;
    EXPECT_EQ(outcome.count("moe: rank 1: " + overflow.path + ": logits["), 1)
        << outcome.output;
    EXPECT_EQ(outcome.count("1 of 1 files"), 0) << outcome.output;
}

TEST(Verify, RefusesBeforeItStartsProcesses) {
    const auto refuses = [](const std::string& flags, const std::string& line) {
        const Outcome outcome = run_moe(fmt::format("verify {} {}", kTwoRanks, flags));
        EXPECT_EQ(outcome.code, 2) << outcome.output;
        EXPECT_EQ(outcome.output, "moe: " + line + "\n");
    };
    const std::string misfit = kTwoRanks + ": world_size = 2: must be ";
    refuses("--spawn 4", misfit + "4, the number of processes");
    refuses("--spawn 1 --json", misfit + "1, the number of processes");
    refuses("--processes --rank 2 --world-size 3", misfit + "3, the number of processes");
    const std::string four = golden_ranks("tp2_ep2_etp2_alltoall");
    refuses(four + " --spawn 2",
            four + ": world_size = 4: must be 2, the number of processes");
}

/// Two ranks, each with words of its own behind `moe verify --processes …`, among
/// variables that say something else. Each says its exit code.
Outcome verify_two(const std::string& first, const std::string& second) {
    const auto rank = [](const std::string& words) {
        return fmt::format("-n 1 sh -c '{} verify {} --processes {}; echo code $?'",
                           MOE_PROGRAM, kOneColumn, words);
    };
    const std::string command = fmt::format(
        "flags= ; mpirun --version | grep -q 'Open MPI' && flags='--map-by "
        ":OVERSUBSCRIBE --allow-run-as-root'; export RANK=5 WORLD_SIZE=7; "
        "exec mpirun $flags {} : {}",
        rank(first), rank(second));
    return Job({"-c", command}, "/bin/sh").finish();
}

TEST(Verify, FlagsComeBeforeVariables) {
    NEEDS_MPI();
    const auto verify = [](int first, int second) {
        const auto words = [](int rank) {
            return fmt::format("--rank {} --world-size 2 {}", rank, kTwoRanks);
        };
        return verify_two(words(first), words(second));
    };
    const Outcome outcome = verify(0, 1);
    EXPECT_EQ(outcome.count("code 0"), 2) << outcome.output;
    EXPECT_EQ(outcome.count("1 of 1 files match"), 1) << outcome.output;
    const Outcome swapped = verify(1, 0);
    EXPECT_EQ(swapped.count("code 2"), 2) << swapped.output;
    for (int rank : {0, 1})
        EXPECT_EQ(swapped.count(fmt::format("moe: --rank = {}: must be {}, as MPI counts",
                                            rank, 1 - rank)),
                  1)
            << swapped.output;
}

TEST(Verify, TheLargestExitCodeIsEverybodys) {
    NEEDS_MPI();
    const ChangedCase other([](TensorMap& tensors, std::string&) {
        tensors.at("rank.0.expect.output").data<double>()[5] += 0.5;
    });
    const Outcome outcome = verify_two("--rank 0 --world-size 2 " + kTwoRanks,
                                       "--rank 1 --world-size 2 " + other.path);
    EXPECT_EQ(outcome.count("1 of 1 files match"), 1) << outcome.output;
    EXPECT_EQ(outcome.count("code 1"), 2) << outcome.output;
}

}  // namespace
}  // namespace moe::test
