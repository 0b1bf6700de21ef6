/// @file
/// Processes that a child left behind, also those that left its process group.
#pragma once

#include <sys/types.h>

#include <set>

namespace moe::gpu_check {

/// From here on, a descendant whose parent ends becomes a child of this process: no
/// session or group of its own hides it.
class Descendants {
  public:
    Descendants();
    /// Ends all children that came since the constructor, and those that they leave.
    void end() const;

  private:
    std::set<pid_t> before_;
};

}  // namespace moe::gpu_check
