/// @file
/// Flags for a layer whose config and weights are a checkpoint's.
#pragma once

#include <optional>
#include <string>

#include "cli/flags.h"
#include "cli/options.h"
#include "core/checkpoint/layer.h"

namespace moe {

class CheckpointOptions {
  public:
    /// Adds --checkpoint, --layer and --fc1-layout to `command`.
    explicit CheckpointOptions(Command& command);

    bool given() const { return folder_.has_value(); }
    /// Reads the layer, once, and makes its config the one that `options`' flags change.
    /// Without --checkpoint it does nothing. InputError for flags that do not go
    /// together.
    void load(LayerOptions& options);
    /// The weights, which must fit the config that flags made; empty without a
    /// checkpoint. Where a column is of bf16 all columns start from what bf16 holds of
    /// the weights, but for a router that is not of bf16 either; a note says so where
    /// that changes them.
    TensorMap parameters(const MoEConfig& config,
                         const std::vector<ModuleSpec>& columns) const;
    /// "per expert, w1/w3/w2; 25 tensors, model.layers.3…gate.weight and on".
    std::string weights() const;

  private:
    std::optional<std::string> folder_;
    std::optional<std::int64_t> layer_;
    checkpoint::Options options_;
    std::optional<checkpoint::Layer> loaded_;
};

}  // namespace moe
