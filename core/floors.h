/// @file
/// The least that every operation of the layer must do: the numbers that it has to read
/// and write at least once, each operand in its own dtype and form, and its arithmetic.
/// `compare`, the report and `bench` take what they show from here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/dtype.h"
#include "core/kept.h"
#include "core/steps.h"

namespace moe {

/// Sizes that decide how much an operation moves.
struct StepSizes {
    std::int64_t num_tokens = 0;  ///< T
    std::int64_t num_rows = 0;    ///< N, rows after dispatch
};

/// How the router hands on what it chose.
enum class RoutingForm {
    dense,   ///< probs (T, E) and a map (T, E) of bytes: Router::Output
    chosen,  ///< weights and ids of the chosen experts, (T, K) each
};

/// In which types operands lie.
struct Formats {
    DType dtype = DType::f32;   ///< activations, weights, and the gradients of both
    DType logits = DType::f32;  ///< and their gradient
    DType probs = DType::f32;   ///< and their gradient
    DType ids = DType::i64;     ///< experts, rows, counts
    RoutingForm routing = RoutingForm::dense;
};

/// Those of a layer in `dtype`, as all tiers have them: logits and probabilities in fp32
/// or more, see ModuleSpec::raise_router_dtype() and probs_placement().
Formats formats_of(const MoEConfig& config, DType dtype);

/// What one operation must do at the least.
struct Floor {
    std::string formula;  ///< numbers moved, with the letters T H ℓ E K F Fs N, and m
                          ///< where there is metadata; "" when no work
    std::int64_t bytes = 0;     ///< of these numbers
    std::int64_t metadata = 0;  ///< bytes of maps, ids, counts and row numbers
    double flops = 0.0;         ///< of matrix products; the rest hides behind its bytes

    std::int64_t total_bytes() const { return bytes + metadata; }
    bool is_off() const { return formula.empty(); }
    /// One after the other.
    Floor operator+(const Floor& other) const;
};

/// The floors of a layer's operations. A step alone reads what the step before it wrote;
/// a fused one keeps that on the chip, and its floor is lower than the sum of theirs.
class Floors {
  public:
    /// @param config  finalized
    Floors(const MoEConfig& config, const StepSizes& sizes, const Formats& formats);

    Floor step(Step step) const;

    /// The size of what a tier keeps.
    Floor kept(const std::vector<KeptTensor>& tensors) const;

    /// How many tokens' rows a product reads: T where it gathers them itself.
    enum class Rows { gathered, dispatched };

    // Forward, several steps in one
    /// ②③: routing finds the logits where gating made them. They are still written, for
    /// the losses and the backward.
    Floor gating_and_routing() const;
    /// ⑥–⑧: FC1 gathers its rows from the tokens, which are never copied.
    Floor dispatch_to_activation() const;
    /// ⑦⑧.
    Floor fc1_and_activation(Rows rows = Rows::dispatched) const;
    /// ⑥ where rows are gathered later: which token each row is of, and its weight.
    Floor row_map() const;

    // Backward, as kernels; source of the cut: SonicMoE, arXiv 2512.14080
    /// ⑫⑬: dh and dp, and the weighted activation again, for dW2.
    Floor experts_dh(Rows rows) const;
    Floor experts_dw2(Rows rows) const;
    Floor experts_dx() const;
    Floor experts_dw1(Rows rows) const;
    /// ⑯–⑱: dlogits.
    Floor losses_to_routing_backward() const;
    /// ⑲, its two products.
    Floor gating_dx() const;
    Floor gating_dw() const;

    /// The shared experts as the only expert, to which all tokens go: nothing is routed.
    Floors shared_experts() const;

  private:
    class Sum;
    void add_routing(Sum& sum, int times) const;
    void add_row_map(Sum& sum) const;
    void add_tokens(Sum& sum, Rows rows) const;

    MoEConfig config_;
    StepSizes sizes_;
    Formats formats_;
    bool routed_ = true;
};

}  // namespace moe
