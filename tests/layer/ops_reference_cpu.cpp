// ops_reference_cpu.cpp: the operations of reference_cpu.

#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "reference_cpu/activation.h"
#include "reference_cpu/load_balancing.h"
#include "reference_cpu/permutation.h"
#include "reference_cpu/rows.h"
#include "reference_cpu/scores.h"
#include "reference_cpu/sinkhorn.h"
#include "reference_cpu/token_dropping.h"
#include "tests/layer/ops.h"

namespace moe::test {
namespace {

template <typename Scalar>
class CpuRowOps : public RowOps {
  public:
    RowMap make_row_map(const Tensor& routing_map) const override {
        const cpu::RowMap map = row_map(routing_map);
        return {map.row_token, map.row_expert, map.tokens_per_expert, map.token_offsets,
                map.token_rows};
    }
    Tensor pad_routing_map(const Tensor& routing_map,
                           std::int64_t pad_multiple) const override {
        Inputs in;
        return cpu::pad_routing_map(in(routing_map, kPlace), pad_multiple);
    }
    Tensor permute(const Tensor& tokens, const Tensor& routing_map) const override {
        Inputs in;
        return cpu::permute<Scalar>(in(tokens, kPlace), row_map(routing_map));
    }
    Tensor permute_backward(const Tensor& drows,
                            const Tensor& routing_map) const override {
        Inputs in;
        return cpu::permute_backward<Scalar>(in(drows, kPlace), row_map(routing_map));
    }
    Tensor permute_probs(const Tensor& probs, const Tensor& routing_map) const override {
        Inputs in;
        return cpu::permute_probs<Scalar>(in(probs, kPlace), row_map(routing_map));
    }
    Tensor permute_probs_backward(const Tensor& drow_probs,
                                  const Tensor& routing_map) const override {
        Inputs in;
        return cpu::permute_probs_backward<Scalar>(in(drow_probs, kPlace),
                                                   row_map(routing_map));
    }
    Tensor unpermute(const Tensor& rows, const Tensor& routing_map) const override {
        Inputs in;
        return cpu::unpermute<Scalar>(in(rows, kPlace), row_map(routing_map));
    }
    Tensor unpermute_backward(const Tensor& doutput,
                              const Tensor& routing_map) const override {
        Inputs in;
        return cpu::unpermute_backward<Scalar>(in(doutput, kPlace), row_map(routing_map));
    }
    Tensor sort_chunks_by_idxs(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                               const std::vector<std::int64_t>& order) const override {
        Inputs in;
        return cpu::sort_chunks_by_idxs<Scalar>(in(rows, kPlace), sizes, order);
    }

    Tensor activation_forward(const MoEConfig& config, const Tensor& h,
                              const Tensor& p) const override {
        Inputs in;
        const Tensor z = in(h, kPlace), probs = in(p, kPlace);
        const std::int64_t F = z.dim(1) / (config.gated_linear_unit ? 2 : 1);
        const cpu::ExpertActivation<Scalar> activation(config, F);
        Tensor a = Tensor::empty({z.dim(0), F}, dtype_of<Scalar>);
        for (std::int64_t r = 0; r < z.dim(0); ++r)
            activation.forward(cpu::row_at<Scalar>(a, r).array(),
                               cpu::row_at<Scalar>(z, r).array(),
                               probs.data<Scalar>()[r]);
        return a;
    }
    ActivationGradients activation_backward(const MoEConfig& config, const Tensor& h,
                                            const Tensor& da,
                                            const Tensor& p) const override {
        Inputs in;
        const Tensor z = in(h, kPlace), dy = in(da, kPlace), probs = in(p, kPlace);
        const cpu::ExpertActivation<Scalar> activation(config, dy.dim(1));
        ActivationGradients result{Tensor::empty(z.shape(), dtype_of<Scalar>),
                                   Tensor::empty({z.dim(0)}, dtype_of<Scalar>)};
        for (std::int64_t r = 0; r < z.dim(0); ++r)
            result.dp.template data<Scalar>()[r] = activation.backward(
                cpu::row_at<Scalar>(result.dh, r).array(),
                cpu::row_at<Scalar>(z, r).array(), cpu::row_at<Scalar>(dy, r).array(),
                probs.data<Scalar>()[r]);
        return result;
    }

  private:
    static constexpr Placement kPlace{MemorySpace::host, dtype_of<Scalar>};
    static cpu::RowMap row_map(const Tensor& routing_map) {
        Inputs in;
        return cpu::make_row_map(in(routing_map, kPlace));
    }
};

/// Indices of every row, (T, K) i64.
template <typename Key, typename Choose>
Tensor choose_rows(const Tensor& keys, std::int64_t k, Choose choose) {
    Inputs in;
    const Tensor given = in(keys, {MemorySpace::host, dtype_of<Key>});
    Tensor chosen = Tensor::empty({keys.dim(0), k}, DType::i64);
    for (std::int64_t t = 0; t < keys.dim(0); ++t) {
        const auto row = choose(cpu::row_of<Key>(given, t));
        MOE_CHECK_EQ(std::int64_t(row.size()), k);
        std::copy(row.begin(), row.end(), chosen.data<std::int64_t>() + t * k);
    }
    return chosen;
}

template <typename Scalar>
class CpuRouterOps : public RouterOps {
  public:
    Tensor compute_scores(const std::string& function, const Tensor& x) const override {
        Inputs in;
        const Tensor logits = in(x, kScores);
        Tensor s = Tensor::empty(x.shape(), DType::f32);
        for (std::int64_t t = 0; t < x.dim(0); ++t)
            cpu::compute_scores(cpu::row_of<float>(s, t),
                                cpu::parse_score_function(function),
                                cpu::row_of<float>(logits, t));
        return s;
    }
    Tensor compute_scores_backward(const std::string& function, const Tensor& x,
                                   const Tensor& s, const Tensor& ds) const override {
        Inputs in;
        const Tensor logits = in(x, kScores), scores = in(s, kScores);
        const Tensor gradient = in(ds, kScores);
        Tensor dx = Tensor::empty(x.shape(), DType::f32);
        for (std::int64_t t = 0; t < x.dim(0); ++t)
            cpu::compute_scores_backward(
                cpu::row_of<float>(dx, t), cpu::parse_score_function(function),
                cpu::row_of<float>(logits, t), cpu::row_of<float>(scores, t),
                cpu::row_of<float>(gradient, t));
        return dx;
    }
    Tensor normalize(const Tensor& s) const override {
        Tensor p = transfer(s, kScores).clone();
        for (std::int64_t t = 0; t < s.dim(0); ++t)
            cpu::normalize(cpu::row_of<float>(p, t));
        return p;
    }
    Tensor normalize_backward(const Tensor& dp, const Tensor& s) const override {
        Inputs in;
        const Tensor scores = in(s, kScores);
        Tensor ds = transfer(dp, kScores).clone();
        for (std::int64_t t = 0; t < s.dim(0); ++t)
            cpu::normalize_backward(cpu::row_of<float>(ds, t),
                                    cpu::row_of<float>(scores, t));
        return ds;
    }
    Tensor top_k(const Tensor& keys, std::int64_t k) const override {
        return choose_rows<Scalar>(
            keys, k, [&](std::span<const Scalar> row) { return cpu::top_k(row, k); });
    }
    Tensor group_limited_top_k(const Tensor& keys, std::int64_t k,
                               std::int64_t num_groups, std::int64_t group_topk,
                               std::int64_t group_score_topk) const override {
        return choose_rows<Scalar>(keys, k, [&](std::span<const Scalar> row) {
            return cpu::group_limited_top_k(row, k, num_groups, group_topk,
                                            group_score_topk);
        });
    }

    DroppedRouting apply_token_dropping(const Tensor& probs, const Tensor& routing_map,
                                        const MoEConfig& config) const override {
        Inputs in;
        const auto kept = cpu::apply_token_dropping<Scalar>(
            in(probs, kPlace), in(routing_map, kPlace), config);
        return {kept.probs, kept.routing_map};
    }
    Tensor apply_token_dropping_backward(const Tensor& dprobs,
                                         const Tensor& kept_map) const override {
        Inputs in;
        return cpu::apply_token_dropping_backward<Scalar>(in(dprobs, kPlace),
                                                          in(kept_map, kPlace));
    }

    AuxiliaryLosses auxiliary_losses(const Tensor& logits, std::int64_t seq_len,
                                     std::int64_t micro_batch, const Tensor& padding_mask,
                                     const MoEConfig& config,
                                     double main_loss_backward_scale) const override {
        Inputs in;
        const Tensor x = in(logits, kPlace), mask = in(padding_mask, kPlace);
        cpu::TokenGrid grid{seq_len, micro_batch, nullptr};
        if (mask.defined()) grid.padding_mask = mask.data<std::uint8_t>();
        AuxiliaryLosses result;
        cpu::GlobalTokenCounts counts;
        const auto saved =
            cpu::auxiliary_losses_forward<Scalar>(result.losses, counts, x, grid, config,
                                                  *distributed::single_rank_groups(), {});
        result.dlogits = cpu::auxiliary_losses_backward<Scalar>(saved, x, grid, config,
                                                                main_loss_backward_scale);
        return result;
    }
    Tensor sinkhorn(const Tensor& logits) const override {
        Inputs in;
        return cpu::sinkhorn<Scalar>(in(logits, kPlace));
    }
    Tensor get_updated_expert_bias(const Tensor& expert_bias,
                                   const std::vector<std::int64_t>& tokens_per_expert,
                                   double update_rate) const override {
        Inputs in;
        return cpu::get_updated_expert_bias(
            in(expert_bias, kScores),
            Tensor::from(expert_bias.shape(), tokens_per_expert), update_rate);
    }

  private:
    static constexpr Placement kPlace{MemorySpace::host, dtype_of<Scalar>};
    static constexpr Placement kScores{MemorySpace::host, DType::f32};
};

}  // namespace

std::unique_ptr<RowOps> reference_cpu_row_ops(DType dtype) {
    if (dtype == DType::f64) return std::make_unique<CpuRowOps<double>>();
    MOE_CHECK(dtype == DType::f32);
    return std::make_unique<CpuRowOps<float>>();
}

std::unique_ptr<RouterOps> reference_cpu_router_ops(DType dtype) {
    if (dtype == DType::f64) return std::make_unique<CpuRouterOps<double>>();
    MOE_CHECK(dtype == DType::f32);
    return std::make_unique<CpuRouterOps<float>>();
}

}  // namespace moe::test
