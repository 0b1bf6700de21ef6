#include "core/micro_batches.h"

#include "core/transfer.h"

namespace moe {
namespace {

template <typename Scalar>
void add(Tensor& sum, const Tensor& term) {
    for (std::int64_t i = 0; i < sum.numel(); ++i)
        sum.data<Scalar>()[i] += term.data<Scalar>()[i];
}

}  // namespace

double main_loss_backward_scale(const MoEConfig& config, std::int64_t micro_batches) {
    return config.calculate_per_token_loss ? 1.0 : 1.0 / double(micro_batches);
}

void add_to_main_grads(TensorMap& main_grads, const TensorMap& gradients) {
    for (const auto& [name, gradient] : gradients) {
        const bool is_fp64 = gradient.dtype() == DType::f64;
        const Tensor term =
            transfer(gradient, {MemorySpace::host, is_fp64 ? DType::f64 : DType::f32});
        Tensor& sum = main_grads[name];
        if (!sum.defined())
            sum = term.clone();
        else if (is_fp64)
            add<double>(sum, term);
        else
            add<float>(sum, term);
    }
}

void add_to_means(Losses& means, const Losses& losses, std::int64_t micro_batches) {
    for (const auto& [name, loss] : losses) means[name] += loss / double(micro_batches);
}

UpdatedBuffers finish_optimizer_step(MoELayer& layer) {
    UpdatedBuffers updated{layer.update_expert_bias(), layer.update_qb_beta()};
    layer.reset_global_aux_loss_tracker();
    return updated;
}

}  // namespace moe
