#include "cli/gpu_check/descendants.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

namespace moe::gpu_check {
namespace {

/// This process's children, by the lists that the kernel keeps for each of its threads.
/// Kernels built without these lists know none: then the process group has to do.
std::set<pid_t> children() {
    std::set<pid_t> found;
    std::error_code ignored;
    for (const auto& thread :
         std::filesystem::directory_iterator("/proc/self/task", ignored)) {
        std::ifstream list(thread.path() / "children");
        for (pid_t child; list >> child;) found.insert(child);
    }
    return found;
}

}  // namespace

Descendants::Descendants() : before_(children()) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

void Descendants::end() const {
    constexpr int kMostRounds =
        100;  // of 10 ms; what sits in a driver may not end at all
    for (int round = 0; round < kMostRounds; ++round) {
        bool any = false;
        for (const pid_t child : children()) {
            if (before_.contains(child)) continue;
            any = true;
            kill(child, SIGKILL);
            waitpid(child, nullptr, WNOHANG);
        }
        if (!any) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

}  // namespace moe::gpu_check
