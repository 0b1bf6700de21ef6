#include "core/steps.h"

#include <array>

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

/// A term of a formula: its text and its number of elements.
struct Count {
    const char* formula;
    std::int64_t elements;
};

Count count_elements(Step step, const MoEConfig& c, const StepSizes& sizes) {
    const std::int64_t T = sizes.num_tokens, N = sizes.num_rows;
    const std::int64_t H = c.hidden_size, E = c.num_experts(), F = c.ffn();
    const std::int64_t Z = c.fc1_rows(F);  // 2F or F
    const std::int64_t S = c.shared_ffn(), Y = c.fc1_rows(S);
    const bool glu = c.gated_linear_unit;
    switch (step) {
        case Step::shared_experts:
            if (S == 0) return {"", 0};
            return {glu ? "2TH + 3FsH" : "2TH + 2FsH", 2 * T * H + Y * H + S * H};
        case Step::gating: return {"TH + EH + TE", T * H + E * H + T * E};
        case Step::routing: return {"2 TE", 2 * T * E};
        case Step::token_dropping:
            if (!c.moe_expert_capacity_factor) return {"", 0};
            return {"2 TE", 2 * T * E};
        case Step::auxiliary_losses: return {"TE", T * E};
        case Step::dispatch: return {"TH + NH", T * H + N * H};
        case Step::fc1:
            return {glu ? "NH + 2EFH + 2NF" : "NH + EFH + NF", N * H + E * Z * H + N * Z};
        case Step::activation: return {glu ? "3 NF" : "2 NF", N * Z + N * F};
        case Step::fc2: return {"NF + EFH + NH", N * F + E * F * H + N * H};
        case Step::combine: return {"NH + TH", N * H + T * H};
        case Step::combine_backward: return {"TH + NH", T * H + N * H};
        case Step::fc2_backward:
            return {"NH + 2NF + 2EFH", N * H + 2 * N * F + 2 * E * F * H};
        case Step::activation_backward: return {glu ? "5 NF" : "3 NF", N * F + 2 * N * Z};
        case Step::fc1_backward:
            return {glu ? "2NH + 2NF + 4EFH" : "2NH + NF + 2EFH",
                    2 * N * H + N * Z + 2 * E * Z * H};
        case Step::dispatch_backward: return {"NH + TH", N * H + T * H};
        case Step::auxiliary_losses_backward: return {"2 TE", 2 * T * E};
        case Step::token_dropping_backward:
            if (!c.moe_expert_capacity_factor) return {"", 0};
            return {"2 TE", 2 * T * E};
        case Step::routing_backward: return {"2 TE", 2 * T * E};
        case Step::gating_backward:
            return {"TE + 2TH + 2EH", T * E + 2 * T * H + 2 * E * H};
        case Step::shared_experts_backward:
            if (S == 0) return {"", 0};
            return {glu ? "3TH + 6FsH" : "3TH + 4FsH", 3 * T * H + 2 * (Y * H + S * H)};
    }
    return {"", 0};
}

}  // namespace

std::string circled(Step step) {
    // U+2460 is ①; the twenty circled numbers follow one another.
    const int last_byte = 0xA0 + static_cast<int>(step) - 1;
    return {'\xE2', '\x91', static_cast<char>(last_byte)};
}

std::string title(Step step) {
    return kTitles[static_cast<std::size_t>(step) - 1];
}

StepCost step_cost(Step step, const MoEConfig& config, const StepSizes& sizes,
                   DType dtype) {
    const Count count = count_elements(step, config, sizes);
    return {count.formula, count.elements * static_cast<std::int64_t>(size_of(dtype))};
}

}  // namespace moe
