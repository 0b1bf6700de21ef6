/// @file
/// What the suites about the program share: running it with its output captured, and a
/// folder for files.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "tests/support.h"

namespace moe::test {

/// The words of a command line; none of ours has a blank inside.
inline std::vector<std::string> split(const std::string& line) {
    std::istringstream words(line);
    return {std::istream_iterator<std::string>(words), {}};
}

struct Output {
    int code;
    std::string out, err;
};

/// What a command said on stderr, but for the note on the tier that lacks a GPU here.
inline std::string without_device_note(std::string err) {
    const std::string note = "left out: tier = naive_gpu: " + missing_device();
    const std::size_t at = err.find(note);
    if (missing_device().empty() || at == std::string::npos) return err;
    err.erase(at, note.size());
    const std::string start = "moe: note: ";
    if (err.compare(at, 2, "; ") == 0)
        err.erase(at, 2);  // another note of that line
    else
        err.erase(at - start.size(), start.size() + 1);
    return err;
}

/// `moe` with these arguments.
inline Output moe(const std::vector<std::string>& arguments) {
    available_suppliers();  // registers the tiers
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = run_program(arguments);
    std::fflush(stdout);
    return {code, testing::internal::GetCapturedStdout(),
            without_device_note(testing::internal::GetCapturedStderr())};
}
inline Output moe(const std::string& line) {
    return moe(split(line));
}

/// Whether these words are on stdout.
inline bool has(const Output& output, const std::string& words) {
    return output.out.find(words) != std::string::npos;
}

/// Runs of blanks as one, so that a table's row can be named.
inline std::string squeezed(const std::string& text) {
    std::string result;
    for (const char c : text)
        if (c != ' ' || result.empty() || result.back() != ' ') result += c;
    return result;
}

/// `moe compare`, small enough for a test; the text is to follow.
inline const std::string kSmall =
    "compare --scale 256 --seq-length 33 --micro-batch-size 3 "
    "--repeats 1 --golden none --report none --text ";

inline std::int64_t count_lines(const std::string& text) {
    return std::count(text.begin(), text.end(), '\n');
}

/// Exit code 2, nothing on stdout, and on stderr one line "moe: …" with these words.
inline testing::AssertionResult IsBadInput(const std::vector<std::string>& arguments,
                                           const std::vector<std::string>& words) {
    const Output output = moe(arguments);
    const auto failure = [&] {
        auto result = testing::AssertionFailure();
        for (const std::string& argument : arguments) result << argument << " ";
        return result << "-> ";
    };
    if (output.code != kExitBadInput)
        return failure() << "exit code " << output.code << ", " << output.err;
    if (!output.out.empty()) return failure() << "on stdout: " << output.out;
    if (!output.err.starts_with("moe: ") || output.err.back() != '\n' ||
        count_lines(output.err) != 1)
        return failure() << "not one line: " << output.err;
    for (const std::string& word : words)
        if (output.err.find(word) == std::string::npos)
            return failure() << output.err << " lacks " << word;
    return testing::AssertionSuccess();
}
inline testing::AssertionResult IsBadInput(const std::string& line,
                                           const std::vector<std::string>& words) {
    return IsBadInput(split(line), words);
}

/// A folder of its own for each test.
class CliTest : public testing::Test {
  protected:
    CliTest() {
        const auto* info = testing::UnitTest::GetInstance()->current_test_info();
        folder_ = std::filesystem::path(testing::TempDir()) /
                  (std::string("moe_cli_") + info->name() + std::to_string(getpid()));
        unsetenv("COLUMNS");  // tables as wide as they are
    }
    ~CliTest() override { std::filesystem::remove_all(folder_); }

    /// In the folder, which is made when it is needed: a process that a death test starts
    /// has one of its own, and may leave without any clean-up.
    std::string path(const std::string& name) const {
        std::filesystem::create_directories(folder_);
        return folder_ / name;
    }

    std::string write(const std::string& name, const std::string& text) const {
        std::ofstream(path(name), std::ios::binary) << text;
        return path(name);
    }

    static std::string read(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    static std::string golden(const std::string& name) {
        return golden_folder() + "/" + name + ".safetensors";
    }

    /// For death tests: runs the program and leaves with its code, and without the
    /// folder.
    void exit_with(const std::vector<std::string>& arguments) const {
        const int code = run_program(arguments);
        std::filesystem::remove_all(folder_);
        std::exit(code);
    }

    std::filesystem::path folder_;
};

}  // namespace moe::test
