/// @file
/// A backward that is the last of its forward.
#pragma once

#include "core/tensor.h"

namespace moe {

/// While it lives, backwards on its thread may let go of what their forwards kept as soon
/// as they have used it: the caller's word that no other backward of these forwards
/// follows. Source: torch.autograd, retain_graph=False.
class LastBackward {
  public:
    LastBackward() : outer_(is_open_) { is_open_ = true; }
    ~LastBackward() { is_open_ = outer_; }
    LastBackward(const LastBackward&) = delete;
    LastBackward& operator=(const LastBackward&) = delete;

    /// The component has used what it kept for the last time.
    static void let_go(Tensor& kept) {
        if (is_open_) kept = {};
    }

  private:
    inline static thread_local bool is_open_ = false;
    bool outer_;
};

}  // namespace moe
