/// @file
/// Flags of an optimizer step: how many micro-batches it has, or an evaluation instead.
#pragma once

#include <cstdint>
#include <string>

#include "cli/flags.h"

namespace moe {

class StepOptions {
  public:
    /// Adds --micro-batches and --eval to `command`.
    explicit StepOptions(Command& command);
    bool training() const { return !eval_; }
    /// InputError unless from 1 to 1000.
    std::int64_t micro_batches() const;
    /// What the ranks must have been asked for alike.
    std::string in_words() const;

  private:
    std::int64_t micro_batches_ = 1;
    bool eval_ = false;
};

/// "evaluation: …"; "" in training.
std::string mode_in_words(bool training);

}  // namespace moe
