/// @file
/// A layer that `moe compare` runs: an optimizer step, watched or not.
#pragma once

#include <vector>

#include "cli/compare/comparison.h"
#include "core/kept_bytes.h"
#include "core/micro_batches.h"

namespace moe {

/// What a micro-batch gives the layer.
struct MicroBatch {
    Tensor hidden, doutput;       // (S, B, H)
    Tensor token_ids = {};        // (B, S) or undefined
    Tensor target_topk_idx = {};  // (T, K) or undefined
};

/// One layer on the request's input.
class Runner {
  public:
    Runner(const ComparisonRequest& request, const ModuleSpec& spec,
           const TensorMap& parameters, const std::vector<MicroBatch>& inputs)
        : layer_(request.config, spec, parameters),
          inputs_(inputs),
          training_(request.training) {}

    struct Watched {
        Losses losses;  ///< means
        UpdatedBuffers updated;
    };
    /// A whole optimizer step, watched.
    /// @param observer_of  (i) -> Observer& of that micro-batch
    template <typename ObserverOf>
    Watched run(const ObserverOf& observer_of) {
        Watched step;
        for (std::size_t i = 0; i < inputs_.size(); ++i) {
            const RunContext context = context_for(inputs_[i], &observer_of(i));
            auto forward = layer_.forward(inputs_[i].hidden, {}, context);
            layer_.backward(inputs_[i].doutput, forward.saved, context);
            add_to_means(step.losses, forward.losses.read(), count());
        }
        if (training_) step.updated = finish_optimizer_step(layer_);
        return step;
    }

    struct Results {
        Tensor output;  ///< (S, B, H)
        MoELayer::Gradients gradients;
    };
    /// The same up to the update, and nobody watches. @return by micro-batch
    std::vector<Results> run_unwatched() {
        std::vector<Results> results;
        for (const MicroBatch& input : inputs_) {
            const RunContext context = context_for(input, nullptr);
            const auto forward = layer_.forward(input.hidden, {}, context);
            results.push_back(
                {forward.output, layer_.backward(input.doutput, forward.saved, context)});
        }
        return results;
    }
    std::int64_t kept_bytes() {
        return count_kept_bytes(layer_, inputs_[0].hidden,
                                context_for(inputs_[0], nullptr));
    }

    const ModuleSpec& spec() const { return layer_.spec(); }
    std::int64_t count() const { return std::int64_t(inputs_.size()); }

  private:
    RunContext context_for(const MicroBatch& input, Observer* observer) const {
        return {.training = training_,
                .main_loss_backward_scale =
                    main_loss_backward_scale(layer_.config(), count()),
                .observer = observer,
                .token_ids = input.token_ids,
                .target_topk_idx = input.target_topk_idx};
    }

    MoELayer layer_;
    std::vector<MicroBatch> inputs_;
    bool training_;
};

}  // namespace moe
