/// @file
/// `moe trace --token`: one token on its way through the layer and back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/compare/comparison.h"
#include "cli/trace/values.h"
#include "core/steps.h"

namespace moe {

/// The token's byte in its text, e.g. "…the rou[t]er's…, byte 0x74"; what is no printable
/// ASCII is shown as a dot.
std::string text_around(const TextTokens& text, std::int64_t token);

/// Prints the token's own rows of each value, and in words where it goes.
class TokenPrinter : public Observer {
  public:
    TokenPrinter(std::int64_t tokens, std::int64_t token, const MoEConfig& config)
        : names_(tokens, config), token_(token), config_(config) {}

    void on_value(Step step, const std::string& name, const TensorView& view) override;

  private:
    void print_own_rows(Step step, const std::string& name, const TensorView& view);
    /// Of a value per expert, where they are many, those of the experts it chose.
    void print_chosen(const std::string& name, const TensorView& view) const;
    /// What the value means for the token, where that is not to be seen in its numbers.
    void explain(const std::string& name, const TensorView& view);
    void explain_choice(const TensorView& topk_probs) const;
    void explain_dropping(const TensorView& routing_map) const;
    void explain_rows();
    void explain_output() const;

    RowNames names_;
    std::int64_t token_;
    MoEConfig config_;
    std::optional<Step> last_;
    std::vector<std::int64_t> chosen_;  // experts, best first
    std::vector<std::int64_t> rows_;    // of the dispatched ones
};

}  // namespace moe
