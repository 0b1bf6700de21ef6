/// @file
/// The operations inside components, those of every tier behind one interface, so that
/// suites of single operations run over all of them. Tensors come and go on the host, in
/// any floating-point type; the operation works in its supplier's.
///
/// What an operation does is said where its tier declares it, under the same name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tensor.h"

namespace moe::test {

/// Rows in expert order, as make_row_map() of every tier lists them.
struct RowMap {
    std::vector<std::int64_t> row_token;          ///< (N) token of row r
    std::vector<std::int64_t> row_expert;         ///< (N) expert of row r
    std::vector<std::int64_t> tokens_per_expert;  ///< (E)
    /// Rows of token t: token_rows[token_offsets[t] … token_offsets[t + 1]).
    std::vector<std::int64_t> token_offsets;  ///< (T + 1)
    std::vector<std::int64_t> token_rows;     ///< (N), in the order they are summed in

    std::int64_t num_rows() const { return std::int64_t(row_token.size()); }
};

/// What the activation gives back: dh (N, 2F or F) and dp (N).
struct ActivationGradients {
    Tensor dh, dp;
};

/// Operations on rows: T, H and F. Probabilities are never in less than fp32.
class RowOps {
  public:
    virtual ~RowOps() = default;

    // permutation; the row map is that of routing_map (T, E)
    virtual RowMap make_row_map(const Tensor& routing_map) const = 0;
    virtual Tensor pad_routing_map(const Tensor& routing_map,
                                   std::int64_t pad_multiple) const = 0;
    virtual Tensor permute(const Tensor& tokens, const Tensor& routing_map) const = 0;
    virtual Tensor permute_backward(const Tensor& drows,
                                    const Tensor& routing_map) const = 0;
    virtual Tensor permute_probs(const Tensor& probs,
                                 const Tensor& routing_map) const = 0;
    virtual Tensor permute_probs_backward(const Tensor& drow_probs,
                                          const Tensor& routing_map) const = 0;
    virtual Tensor unpermute(const Tensor& rows, const Tensor& routing_map) const = 0;
    virtual Tensor unpermute_backward(const Tensor& doutput,
                                      const Tensor& routing_map) const = 0;
    virtual Tensor sort_chunks_by_idxs(const Tensor& rows,
                                       const std::vector<std::int64_t>& sizes,
                                       const std::vector<std::int64_t>& order) const = 0;

    // activation of h (N, 2F or F) with p (N)
    virtual Tensor activation_forward(const MoEConfig& config, const Tensor& h,
                                      const Tensor& p) const = 0;
    virtual ActivationGradients activation_backward(const MoEConfig& config,
                                                    const Tensor& h, const Tensor& da,
                                                    const Tensor& p) const = 0;
};

/// What dropping leaves: probs (T, E) and routing_map (T, E).
struct DroppedRouting {
    Tensor probs, routing_map;
};

/// The losses of one forward, and their own dlogits (T, E).
struct AuxiliaryLosses {
    Losses losses;
    Tensor dlogits;
};

/// Operations of the router, on rows of E experts. Scores are fp32 in every supplier.
class RouterOps {
  public:
    virtual ~RouterOps() = default;

    // scores
    virtual Tensor compute_scores(const std::string& function, const Tensor& x) const = 0;
    virtual Tensor compute_scores_backward(const std::string& function, const Tensor& x,
                                           const Tensor& s, const Tensor& ds) const = 0;
    virtual Tensor normalize(const Tensor& s) const = 0;
    virtual Tensor normalize_backward(const Tensor& dp, const Tensor& s) const = 0;
    virtual Tensor top_k(const Tensor& keys, std::int64_t k) const = 0;
    virtual Tensor group_limited_top_k(const Tensor& keys, std::int64_t k,
                                       std::int64_t num_groups, std::int64_t group_topk,
                                       std::int64_t group_score_topk) const = 0;

    // token_dropping
    virtual DroppedRouting apply_token_dropping(const Tensor& probs,
                                                const Tensor& routing_map,
                                                const MoEConfig& config) const = 0;
    virtual Tensor apply_token_dropping_backward(const Tensor& dprobs,
                                                 const Tensor& kept_map) const = 0;

    // load_balancing
    /// @param logits (T, E) @param padding_mask (S, B) or undefined
    virtual AuxiliaryLosses auxiliary_losses(const Tensor& logits, std::int64_t seq_len,
                                             std::int64_t micro_batch,
                                             const Tensor& padding_mask,
                                             const MoEConfig& config,
                                             double main_loss_backward_scale) const = 0;
    virtual Tensor sinkhorn(const Tensor& logits) const = 0;
    virtual Tensor get_updated_expert_bias(
        const Tensor& expert_bias, const std::vector<std::int64_t>& tokens_per_expert,
        double update_rate) const = 0;
};

/// The operations of any available supplier, or of a router's: see support.h.
std::unique_ptr<RowOps> make_row_ops(const ComponentSpec& supplier);
std::unique_ptr<RouterOps> make_router_ops(const ComponentSpec& supplier);

// One pair of each tier
std::unique_ptr<RowOps> reference_cpu_row_ops(DType dtype);
std::unique_ptr<RouterOps> reference_cpu_router_ops(DType dtype);
std::unique_ptr<RowOps> naive_gpu_row_ops(DType dtype);
std::unique_ptr<RouterOps> naive_gpu_router_ops(DType dtype);

/// Copies for one call of an operation. When the call is over they must be as they were:
/// no operation changes what it is given.
class Inputs {
  public:
    Inputs() = default;
    Inputs(const Inputs&) = delete;
    Inputs& operator=(const Inputs&) = delete;
    ~Inputs();
    Tensor operator()(const Tensor& tensor, const Placement& placement);

  private:
    std::vector<std::pair<Tensor, Tensor>> given_;  // and as they were
};

}  // namespace moe::test
