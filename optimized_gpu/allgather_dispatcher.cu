// allgather_dispatcher.cu: everybody gets all tokens, and adds up what its experts made.

#include "optimized_gpu/allgather_dispatcher.h"

#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/row_order.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {
namespace {

/// One thread per element.
template <typename T>
__global__ void add_kernel(T* sum, const T* term, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) sum[i] = T(float(sum[i]) + float(term[i]));
}

template <typename T>
void launch_add(Tensor& sum, const Tensor& term) {
    MOE_CHECK_EQ(sum.numel(), term.numel());
    gpu::launch("add_kernel", add_kernel<T>, gpu::one_thread_per(sum.numel()),
                gpu::device_data<T>(sum), gpu::device_data<T>(term), sum.numel());
}

}  // namespace

distributed::RowOrderPtr AllGatherDispatcher::local_permutation(
    const Tensor& routing, const Tensor& probs, std::int64_t first) const {
    const int ranks = groups_->tp_ep->size(), L = int(config_.num_local_experts());
    RowMap map;
    if (routing.dtype() == DType::i32) {
        map = make_row_map(routing, L, 1, probs, gpu::current_stream(),
                           {int(first), int(config_.num_experts())});
    } else {
        // Of an expert each rank has at most C tokens, or all of its own
        const std::int64_t T = routing.dim(0);
        const std::int64_t most = config_.moe_pad_expert_input_to_capacity
                                      ? get_capacity(config_, T / ranks) * ranks
                                      : T;
        map = make_row_map_of_dense(routing, most, 1, probs, gpu::current_stream(), L,
                                    int(first));
    }
    return std::make_unique<MappedRows>(std::move(map), config_.moe_permute_fusion);
}

void AllGatherDispatcher::add(Tensor& sum, const Tensor& term) const {
    if (sum.dtype() == DType::f32)
        launch_add<float>(sum, term);
    else
        launch_add<__nv_bfloat16>(sum, term);
}

void AllGatherDispatcher::end_step(const RunContext& context) const {
    synchronize_if_watched(context);
}

Tensor AllGatherDispatcher::dense_dprobs(const Tensor& dprobs,
                                         const Tensor& topk_ids) const {
    return indices_to_multihot(topk_ids, dprobs, int(config_.num_experts())).probs;
}

}  // namespace moe::optimized
