#include "cli/step_options.h"

#include "core/error.h"

namespace moe {

StepOptions::StepOptions(Command& command) {
    command.option(
        "--micro-batches", micro_batches_,
        "Micro-batches of one optimizer step, run one after another: gradients "
        "add up, and one update follows (default 1)");
    command.flag("--eval", eval_,
                 "Evaluation instead of training: no losses, and nothing is counted");
}

std::int64_t StepOptions::micro_batches() const {
    if (micro_batches_ < 1 || micro_batches_ > 1000)
        reject("--micro-batches", micro_batches_, "must be from 1 to 1000");
    return micro_batches_;
}

std::string StepOptions::in_words() const {
    return fmt::format("{} micro-batches, {}", micro_batches_,
                       training() ? "training" : "evaluation");
}

std::string mode_in_words(bool training) {
    return training
               ? ""
               : "evaluation: no losses, nothing is counted; gradients of the output "
                 "alone";
}

}  // namespace moe
