/// @file
/// What long work says while it runs.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace moe {

/// Says on stderr what is being done: on a terminal in one line, erased when done;
/// elsewhere, where the work is long, in lines of their own, at most one a second.
class Progress {
  public:
    explicit Progress(bool is_long) : is_long_(is_long) {}
    ~Progress() {
        if (shown_) fmt::print(stderr, "\r\033[K");
    }
    void operator()(const std::string& what) {
        if (isatty(STDERR_FILENO)) {
            shown_ = true;
            fmt::print(stderr, "\r\033[K… {}", what);
            std::fflush(stderr);
        } else if (const auto now = Clock::now(); is_long_ && now >= next_) {
            next_ = now + std::chrono::seconds(1);
            fmt::print(stderr, "… {}\n", what);
        }
    }

  private:
    using Clock = std::chrono::steady_clock;
    bool is_long_, shown_ = false;
    Clock::time_point next_{};
};

/// Runs `run` with a request that says how far it is.
template <typename Request, typename Run>
auto run_with_progress(Request request, Run run, bool is_long) {
    Progress progress(is_long);
    request.progress = [&](const std::string& what) { progress(what); };
    return run(request);
}

}  // namespace moe
