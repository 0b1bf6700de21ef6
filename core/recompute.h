/// @file
/// Parts of the layer of which only the input is kept: the backward runs them once more.
/// Source: transformer_config.py, recompute_granularity and recompute_modules.
#pragma once

#include <string>

#include "core/config.h"
#include "core/steps.h"

namespace moe {

/// Whether the backward runs `module` once more: "moe_act", "shared_experts" or "moe".
bool recomputes(const MoEConfig& config, const std::string& module);

/// "⑧ again in backward: recompute_modules moe_act", or nothing.
std::string recomputed_in_words(const MoEConfig& config);

/// The context of a forward that runs once more. Its times count for the steps that they
/// are of; its values were seen before, and its host waits are not the forward's.
class SecondRun : public Observer {
  public:
    explicit SecondRun(const RunContext& context)
        : first_(context.observer), context_(context) {
        if (first_ != nullptr) context_.observer = this;
    }
    SecondRun(const SecondRun&) = delete;
    SecondRun& operator=(const SecondRun&) = delete;

    const RunContext& context() const { return context_; }
    bool wants_values_beside() const override { return false; }
    void on_time(const Steps& steps, double seconds) override {
        first_->on_time(steps, seconds);
    }

  private:
    Observer* first_;
    RunContext context_;
};

}  // namespace moe
