/// @file
/// A program run as a child that cannot outstay its welcome: it has a budget of seconds,
/// its output goes to a file, and when it ends, or has to, all that it started ends too.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace moe::gpu_check {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start);

/// A program to run.
struct Program {
    std::string label = {};  ///< tells it from its stage's others; or nothing
    std::vector<std::string> arguments = {};  ///< the program first; without "/": in PATH
    std::string output = {};  ///< a file for its stdout; else that is logged
    std::string log = {};     ///< a file for what it says; nothing: nowhere
};

/// How a program ended.
struct Ending {
    enum class Kind {
        exited,       ///< by itself; `code` is its exit code
        signalled,    ///< by the signal `code`, which we did not send
        over_budget,  ///< it was stopped
        interrupted,  ///< it was stopped, because the user stopped us
        not_started   ///< `code` is the errno that says why
    };
    Kind kind = Kind::not_started;
    int code = 0;
    double seconds = 0.0;

    bool ok() const { return kind == Kind::exited && code == 0; }
};

/// "exit code 3", "ended by a signal: Segmentation fault", "stopped after 20 s", …
std::string in_words(const Ending& ending);

/// Runs the program to its end, or for `budget` seconds: then it and its descendants get
/// SIGTERM, and SIGKILL a second later. Nothing that it started outlives this call.
/// InputError when one of its files cannot be written, or exists already.
/// @param tick  called many times a second with the seconds so far
Ending run_child(const Program& program, double budget,
                 const std::function<void(double)>& tick);

/// While one is alive, Ctrl-C (and SIGTERM, and a closed terminal) ends no more than the
/// child that runs, and is remembered.
class InterruptGuard {
  public:
    InterruptGuard();
    ~InterruptGuard();
    InterruptGuard(const InterruptGuard&) = delete;
    InterruptGuard& operator=(const InterruptGuard&) = delete;
};

/// True once the user has stopped us.
bool interrupted();

}  // namespace moe::gpu_check
