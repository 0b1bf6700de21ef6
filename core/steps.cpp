#include "core/steps.h"

#include <array>

#include "core/transfer.h"

namespace moe {
namespace {

const std::array<const char*, kNumSteps> kTitles = {
    "shared experts",
    "gating",
    "routing",
    "token dropping",
    "auxiliary losses",
    "dispatch (permute)",
    "FC1",
    "activation x prob",
    "FC2",
    "combine (unpermute)",
    "combine backward",
    "FC2 backward",
    "activation backward",
    "FC1 backward",
    "dispatch backward",
    "losses backward",
    "dropping backward",
    "routing backward",
    "gating backward",
    "shared experts backward",
};

}  // namespace

double LossScale::value() const {
    return on_device_.defined() ? to_doubles(on_device_).at(0) : value_;
}

std::string circled(Step step) {
    // U+2460 is ①; the twenty circled numbers follow one another.
    const int last_byte = 0xA0 + static_cast<int>(step) - 1;
    return {'\xE2', '\x91', static_cast<char>(last_byte)};
}

std::string circled(const Steps& steps) {
    return steps.is_fused() ? circled(steps.first) + "–" + circled(steps.last)
                            : circled(steps.first);
}

std::string title(Step step) {
    return kTitles[static_cast<std::size_t>(step) - 1];
}

}  // namespace moe
