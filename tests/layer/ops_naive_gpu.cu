// ops_naive_gpu.cu: the operations of naive_gpu, to the device and back.

#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "gpu/tensor.h"
#include "naive_gpu/activation.h"
#include "naive_gpu/load_balancing.h"
#include "naive_gpu/permutation.h"
#include "naive_gpu/scores.h"
#include "naive_gpu/sinkhorn.h"
#include "naive_gpu/token_dropping.h"
#include "tests/layer/ops.h"

namespace moe::test {
namespace {

Tensor on_host(const Tensor& tensor) {
    return transfer(tensor, {MemorySpace::host, tensor.dtype()});
}

template <typename T>
class NaiveRowOps : public RowOps {
  public:
    RowMap make_row_map(const Tensor& routing_map) const override {
        const naive::RowMap map = row_map(routing_map);
        RowMap result{gpu::to_host<std::int64_t>(map.row_token),
                      gpu::to_host<std::int64_t>(map.row_expert),
                      map.tokens_per_expert,
                      {0},
                      {}};
        const auto token_row = gpu::to_host<std::int64_t>(map.token_row);
        for (std::int64_t t = 0; t < map.num_tokens; ++t) {
            for (std::int64_t e = 0; e < map.num_experts; ++e) {
                const std::int64_t row = token_row[t * map.num_experts + e];
                if (row >= 0) result.token_rows.push_back(row);
            }
            result.token_offsets.push_back(std::int64_t(result.token_rows.size()));
        }
        return result;
    }
    Tensor pad_routing_map(const Tensor& routing_map,
                           std::int64_t pad_multiple) const override {
        Inputs in;
        return on_host(naive::pad_routing_map(in(routing_map, kPlace), pad_multiple));
    }
    Tensor permute(const Tensor& tokens, const Tensor& routing_map) const override {
        Inputs in;
        return on_host(naive::permute<T>(in(tokens, kPlace), row_map(routing_map)));
    }
    Tensor permute_backward(const Tensor& drows,
                            const Tensor& routing_map) const override {
        Inputs in;
        return on_host(
            naive::permute_backward<T>(in(drows, kPlace), row_map(routing_map)));
    }
    Tensor permute_probs(const Tensor& probs, const Tensor& routing_map) const override {
        Inputs in;
        return on_host(
            naive::permute_probs<Prob>(in(probs, kProbs), row_map(routing_map)));
    }
    Tensor permute_probs_backward(const Tensor& drow_probs,
                                  const Tensor& routing_map) const override {
        Inputs in;
        return on_host(naive::permute_probs_backward<Prob>(in(drow_probs, kProbs),
                                                           row_map(routing_map)));
    }
    Tensor unpermute(const Tensor& rows, const Tensor& routing_map) const override {
        Inputs in;
        return on_host(naive::unpermute<T>(in(rows, kPlace), row_map(routing_map)));
    }
    Tensor unpermute_backward(const Tensor& doutput,
                              const Tensor& routing_map) const override {
        Inputs in;
        return on_host(
            naive::unpermute_backward<T>(in(doutput, kPlace), row_map(routing_map)));
    }
    Tensor sort_chunks_by_idxs(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                               const std::vector<std::int64_t>& order) const override {
        Inputs in;
        return on_host(naive::sort_chunks_by_idxs<T>(in(rows, kPlace), sizes, order));
    }

    Tensor activation_forward(const MoEConfig& config, const Tensor& h,
                              const Tensor& p) const override {
        Inputs in;
        const std::int64_t F = h.dim(1) / (config.gated_linear_unit ? 2 : 1);
        return on_host(naive::activation_forward<T>(naive::ExpertActivation(config, F),
                                                    in(h, kProbs), in(p, kProbs)));
    }
    ActivationGradients activation_backward(const MoEConfig& config, const Tensor& h,
                                            const Tensor& da,
                                            const Tensor& p) const override {
        Inputs in;
        const auto gradients =
            naive::activation_backward<T>(naive::ExpertActivation(config, da.dim(1)),
                                          in(h, kProbs), in(da, kPlace), in(p, kProbs));
        return {on_host(gradients.dh), on_host(gradients.dp)};
    }

  private:
    using Prob = gpu::Accumulator<T>;
    static constexpr Placement kPlace{MemorySpace::device, gpu::device_dtype<T>};
    static constexpr Placement kProbs{MemorySpace::device, gpu::device_dtype<Prob>};
    static naive::RowMap row_map(const Tensor& routing_map) {
        Inputs in;
        return naive::make_row_map(in(routing_map, kPlace));
    }
};

template <typename Scalar>
class NaiveRouterOps : public RouterOps {
  public:
    Tensor compute_scores(const std::string& function, const Tensor& x) const override {
        Inputs in;
        Tensor s = gpu::device_empty<float>(x.shape());
        naive::compute_scores(s, naive::parse_score_function(function), in(x, kScores));
        return on_host(s);
    }
    Tensor compute_scores_backward(const std::string& function, const Tensor& x,
                                   const Tensor& s, const Tensor& ds) const override {
        Inputs in;
        Tensor dx = gpu::device_empty<float>(x.shape());
        naive::compute_scores_backward(dx, naive::parse_score_function(function),
                                       in(x, kScores), in(s, kScores), in(ds, kScores));
        return on_host(dx);
    }
    Tensor normalize(const Tensor& s) const override {
        Tensor p = transfer(s, kScores);
        naive::normalize(p);
        return on_host(p);
    }
    Tensor normalize_backward(const Tensor& dp, const Tensor& s) const override {
        Inputs in;
        Tensor ds = transfer(dp, kScores);
        naive::normalize_backward(ds, in(s, kScores));
        return on_host(ds);
    }
    Tensor top_k(const Tensor& keys, std::int64_t k) const override {
        Inputs in;
        return on_host(naive::top_k<Scalar>(in(keys, kPlace), k));
    }
    Tensor group_limited_top_k(const Tensor& keys, std::int64_t k,
                               std::int64_t num_groups, std::int64_t group_topk,
                               std::int64_t group_score_topk) const override {
        Inputs in;
        return on_host(naive::group_limited_top_k<Scalar>(in(keys, kPlace), k, num_groups,
                                                          group_topk, group_score_topk));
    }

    DroppedRouting apply_token_dropping(const Tensor& probs, const Tensor& routing_map,
                                        const MoEConfig& config) const override {
        Inputs in;
        const auto kept = naive::apply_token_dropping<Scalar>(
            in(probs, kPlace), in(routing_map, kPlace), config);
        return {on_host(kept.probs), on_host(kept.routing_map)};
    }
    Tensor apply_token_dropping_backward(const Tensor& dprobs,
                                         const Tensor& kept_map) const override {
        Inputs in;
        return on_host(naive::apply_token_dropping_backward<Scalar>(
            in(dprobs, kPlace), in(kept_map, kPlace)));
    }

    AuxiliaryLosses auxiliary_losses(const Tensor& logits, std::int64_t seq_len,
                                     std::int64_t micro_batch, const Tensor& padding_mask,
                                     const MoEConfig& config,
                                     double main_loss_backward_scale) const override {
        Inputs in;
        const Tensor x = in(logits, kPlace), mask = in(padding_mask, kPlace);
        const auto grid = naive::make_token_grid(seq_len, micro_batch, mask);
        AuxiliaryLosses result;
        naive::GlobalTokenCounts counts;
        const auto saved = naive::auxiliary_losses_forward<Scalar>(
            result.losses, counts, x, grid, config, *distributed::single_rank_groups(),
            {});
        result.dlogits = on_host(naive::auxiliary_losses_backward<Scalar>(
            saved, x, grid, config, main_loss_backward_scale));
        return result;
    }
    Tensor sinkhorn(const Tensor& logits) const override {
        Inputs in;
        return on_host(naive::sinkhorn<Scalar>(in(logits, kPlace)));
    }
    Tensor get_updated_expert_bias(const Tensor& expert_bias,
                                   const std::vector<std::int64_t>& tokens_per_expert,
                                   double update_rate) const override {
        Inputs in;
        return on_host(naive::get_updated_expert_bias(
            in(expert_bias, kScores), gpu::to_device(tokens_per_expert), update_rate));
    }

  private:
    static constexpr Placement kPlace{MemorySpace::device, dtype_of<Scalar>};
    static constexpr Placement kScores = naive::kScorePlacement;
};

}  // namespace

std::unique_ptr<RowOps> naive_gpu_row_ops(DType dtype) {
    if (dtype == DType::bf16) return std::make_unique<NaiveRowOps<__nv_bfloat16>>();
    MOE_CHECK(dtype == DType::f32);
    return std::make_unique<NaiveRowOps<float>>();
}

std::unique_ptr<RouterOps> naive_gpu_router_ops(DType dtype) {
    if (dtype == DType::f64) return std::make_unique<NaiveRouterOps<double>>();
    MOE_CHECK(dtype == DType::f32);
    return std::make_unique<NaiveRouterOps<float>>();
}

}  // namespace moe::test
