/// @file
/// A backward that is the last of its forward.
#pragma once

#include <utility>

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

    /// While it lives, a component's backward may also let go of a tensor that it was
    /// given, which its caller has no other use for.
    class Given {
      public:
        explicit Given(Tensor& given) : outer_(std::exchange(given_, &given)) {}
        ~Given() { given_ = outer_; }
        Given(const Given&) = delete;
        Given& operator=(const Given&) = delete;

      private:
        Tensor* outer_;
    };
    /// The component has used what it was given for the last time, and so `its`.
    static void let_go_of_given(Tensor& its) {
        if (!is_open_ || given_ == nullptr) return;
        its = {};
        *given_ = {};
    }

  private:
    inline static thread_local bool is_open_ = false;
    inline static thread_local Tensor* given_ = nullptr;
    bool outer_;
};

}  // namespace moe
