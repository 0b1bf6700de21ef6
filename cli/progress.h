/// @file
/// What long work says while it runs.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace moe {

/// Says on a terminal what is being done; erased when done.
class Progress {
  public:
    ~Progress() {
        if (shown_) fmt::print(stderr, "\r\033[K");
    }
    void operator()(const std::string& what) {
        if (!isatty(STDERR_FILENO)) return;
        shown_ = true;
        fmt::print(stderr, "\r\033[K… {}", what);
        std::fflush(stderr);
    }

  private:
    bool shown_ = false;
};

/// Runs `run` with a request that says on the terminal how far it is.
template <typename Request, typename Run>
auto run_with_progress(Request request, Run run) {
    Progress progress;
    request.progress = [&](const std::string& what) { progress(what); };
    return run(request);
}

}  // namespace moe
