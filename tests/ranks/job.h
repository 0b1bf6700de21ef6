/// @file
/// Programs that tests start, and what becomes of them.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "distributed/communicators/mpi_communicator.h"

namespace moe::test {

/// What a program said, and how it ended.
struct Outcome {
    std::string output;  // stdout and stderr
    int code = 0;        // of the launcher; 128 + n after signal n
    double seconds = 0.0;

    /// Lines that begin with this, each once for every time it was printed.
    int count(const std::string& start) const {
        int found = 0;
        std::istringstream lines(output);
        for (std::string line; std::getline(lines, line);)
            found += line.rfind(start, 0) == 0;
        return found;
    }
    /// The one line in which the watchdog or the rank's end speaks for rank `rank`.
    std::string line_of(int rank) const {
        std::istringstream lines(output);
        for (std::string line; std::getline(lines, line);)
            if (line.rfind(fmt::format("moe: rank {}: ", rank), 0) == 0) return line;
        return {};
    }
};

/// A program, started in a process group of its own.
class Job {
  public:
    explicit Job(const std::vector<std::string>& arguments,
                 const char* program = MOE_RANK_PROGRAM)
        : start_(std::chrono::steady_clock::now()) {
        std::array<int, 2> pipe_ends;
        if (pipe(pipe_ends.data()) != 0) std::abort();
        child_ = fork();
        if (child_ == 0) {
            setpgid(0, 0);
            dup2(pipe_ends[1], STDOUT_FILENO);
            dup2(pipe_ends[1], STDERR_FILENO);
            close(pipe_ends[0]);
            close(pipe_ends[1]);
            std::vector<char*> words = {const_cast<char*>(program)};
            for (const std::string& word : arguments)
                words.push_back(const_cast<char*>(word.c_str()));
            words.push_back(nullptr);
            execv(program, words.data());
            _exit(127);
        }
        close(pipe_ends[1]);
        read_end_ = pipe_ends[0];
    }
    ~Job() { close(read_end_); }

    pid_t pid() const { return child_; }

    /// Reads until all that write are gone.
    Outcome finish() {
        Outcome outcome;
        char buffer[4096];
        for (ssize_t got; (got = read(read_end_, buffer, sizeof buffer)) > 0;)
            outcome.output.append(buffer, std::size_t(got));
        outcome.output = seen_ + outcome.output;
        int status = 0;
        waitpid(child_, &status, 0);
        outcome.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        const std::chrono::duration<double> seconds =
            std::chrono::steady_clock::now() - start_;
        outcome.seconds = seconds.count();
        return outcome;
    }

    /// The next line, with its end; empty when all that write are gone.
    std::string read_line() {
        std::string line;
        for (char letter;
             line.find('\n') == line.npos && read(read_end_, &letter, 1) == 1;)
            line += letter;
        seen_ += line;
        return line;
    }

  private:
    std::chrono::steady_clock::time_point start_;
    pid_t child_ = -1;
    int read_end_ = -1;
    std::string seen_;
};

}  // namespace moe::test

/// Skips a test in a build without MPI.
#define NEEDS_MPI()                                                             \
    if (!moe::distributed::MpiSession::available())                             \
    GTEST_SKIP() << "this build has no MPI: apt-get update && apt-get install " \
                    "libopenmpi-dev openmpi-bin"
