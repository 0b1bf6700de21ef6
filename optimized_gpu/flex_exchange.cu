// flex_exchange.cu: the phases of a flex dispatch in order, and what orders them.

#include "optimized_gpu/flex_exchange.h"

#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "gpu/tensor.h"
#include "optimized_gpu/flex_phases.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/permutation.h"
#include "optimized_gpu/row_order.h"

namespace moe::optimized {
namespace {

using distributed::FlexPlan;
using distributed::RowOrder;
using distributed::Splits;

Splits splits_of(const Tensor& counts) {
    const std::vector<std::int32_t> rows = gpu::to_host<std::int32_t>(counts);
    return {rows.begin(), rows.end()};
}

/// A graph cannot ask the other ranks for their number of tokens.
void require_no_capture(const MoEConfig& config) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    gpu::check(cudaStreamIsCapturing(gpu::current_stream(), &status),
               "cudaStreamIsCapturing");
    if (status != cudaStreamCaptureStatusNone && !config.moe_flex_max_tokens_per_rank)
        reject("moe_flex_max_tokens_per_rank", "none",
               "must be given for a layer that is captured in a CUDA graph");
}

}  // namespace

//! [FlexExchange]
FlexExchange::FlexExchange(const Tensor& probs, const Tensor& routing,
                           const MoEConfig& config, DType dtype, const GroupsPtr& groups)
    : config_(config),
      dtype_(dtype),
      heap_(groups->flagged_heap),
      rank_(groups->tp_ep->rank()),
      is_dense_(routing.dtype() == DType::u8),
      topk_ids_(routing),
      topk_probs_(probs) {
    if (is_dense_) {
        topk_ids_ = multihot_to_indices(routing, int(config.moe_router_topk));
        topk_probs_ = indices_to_multihot_backward(probs, topk_ids_);
    }
    require_no_capture(config);
    const std::int64_t max_tokens =
        distributed::max_tokens_per_rank(routing.dim(0), config, *groups->tp_ep);
    slots_ = make_flex_slots(groups->tp_ep->size(), max_tokens, config, dtype);
    if (config.moe_expert_rank_capacity_factor)
        max_rows_ = expert_rank_capacity(config, max_tokens);
    if (slots_.bytes > distributed::heap_limit(config))
        reject("moe_flex_peer_heap_bytes", *config.moe_flex_peer_heap_bytes,
               fmt::format("must be at least {} for {} ranks of up to {} tokens",
                           slots_.bytes, slots_.num_ranks, max_tokens));
    heap_->reserve(slots_.bytes, distributed::heap_limit(config));
    sent_ = make_rank_map(topk_ids_, distributed::expert_grid(config));
}

void FlexExchange::push(const Tensor& hidden) {
    heap_->begin(Turn::push, slots_.layout(), Step::dispatch);
    push_tokens(
        peers<std::byte>(slots_.tokens),
        {peers<std::int32_t>(slots_.topk_ids), peers<std::int32_t>(slots_.sources),
         peers<float>(slots_.topk_probs), peers<std::int32_t>(slots_.counts)},
        hidden, topk_ids_, topk_probs_, sent_, distributed::expert_grid(config_), rank_);
    heap_->meet(Step::dispatch,
                moved(sent_.tokens_per_expert,
                      slots_.tokens.row_bytes() + slots_.topk_ids.row_bytes() +
                          slots_.topk_probs.row_bytes() + slots_.sources.row_bytes()));
}

distributed::FlexExchange::Received FlexExchange::receive() {
    // Kept for the backward: what lies in the heap is gone with the next push. Where the
    // experts get copies, those are what is kept.
    const bool gathers = config_.moe_permute_fusion && max_rows_ < 0;
    const TakenTokens taken = take_tokens(slots_, heap_->table(), gathers);
    counts_ = taken.counts;
    local_ = local_map(taken.topk_ids, taken.topk_probs);
    return {gathers ? taken.rows : Tensor::borrow(own(slots_.tokens)), taken.topk_probs,
            std::make_unique<MappedRows>(local_, gathers)};
}

void FlexExchange::offer(const Tensor& rows, const RowOrder&) {
    heap_->begin(Turn::offer, slots_.layout(), Step::combine);
    combine_into(own(slots_.tokens), rows, local_, {});
    heap_->meet(Step::combine, moved(counts_, slots_.tokens.row_bytes()));
}

Tensor FlexExchange::pull(const Tensor& addend) {
    return pull_rows(peers<std::byte>(slots_.tokens), dtype_, sent_, addend);
}
//! [FlexExchange]

//! [FlexExchange_backward]
void FlexExchange::push_gradients(const Tensor& doutput) {
    heap_->begin(Turn::push, slots_.layout(), Step::combine_backward);
    push_rows(peers<std::byte>(slots_.tokens), doutput, sent_);
    heap_->meet(Step::combine_backward,
                moved(sent_.tokens_per_expert, slots_.tokens.row_bytes()));
}

Tensor FlexExchange::receive_gradients() {
    // Good until this rank offers in the same places, which it does when the experts'
    // backward is done. Where some of that runs beside, a copy is due.
    if (config_.overlap_dispatch_backward_with_experts_wgrad)
        return take_rows(slots_, heap_->table(), counts_);
    return Tensor::borrow(own(slots_.tokens));
}

void FlexExchange::offer_gradients(const Tensor& drows, const Tensor& drow_probs,
                                   const RowOrder&) {
    heap_->begin(Turn::offer, slots_.layout(), Step::dispatch_backward);
    combine_into(own(slots_.tokens), drows, local_, {});
    permute_probs_backward_into(own(slots_.topk_probs), drow_probs, local_);
    heap_->meet(
        Step::dispatch_backward,
        moved(counts_, slots_.tokens.row_bytes() + slots_.topk_probs.row_bytes()));
}

TokenDispatcher::Gradients FlexExchange::pull_gradients() {
    const Tensor dprobs = pull_prob_gradients(peers<float>(slots_.topk_probs), topk_ids_,
                                              sent_, distributed::expert_grid(config_));
    return {pull_rows(peers<std::byte>(slots_.tokens), dtype_, sent_, {}),
            is_dense_
                ? indices_to_multihot(topk_ids_, dprobs, int(config_.num_experts())).probs
                : dprobs};
}
//! [FlexExchange_backward]

distributed::RowsMoved FlexExchange::moved(const Tensor& rows,
                                           std::int64_t row_bytes) const {
    return {gpu::device_data<int>(rows), row_bytes};
}

RowMap FlexExchange::local_map(const Tensor& topk_ids, const Tensor& topk_probs) const {
    const int L = int(config_.num_local_experts());
    const auto map_with = [&](int padding) {
        // A row has each local expert once, whatever the number of its choices
        RowMap map = make_row_map(topk_ids, L, padding, topk_probs, gpu::current_stream(),
                                  {0, L}, {max_rows_, heap_->dropped_rows()});
        map.region_counts = counts_;
        map.tokens_per_region = int(slots_.per_source);
        return map;
    };
    if (!config_.moe_router_padding_for_quantization) return map_with(1);
    // The one thing here that takes a wait: whether there are rows enough to pad
    const int multiple = int(get_align_size_for_quantization(config_));
    RowMap map = map_with(multiple);
    std::int64_t received = 0;
    for (const std::int64_t rows : output_splits()) received += rows;
    return distributed::enough_tokens_to_pad(
               distributed::read_counts(map.tokens_per_expert), received, multiple)
               ? map
               : map_with(1);
}

// ------------------------------------------------------------------------- for who looks
Splits FlexExchange::input_splits() const {
    return splits_of(sent_.tokens_per_expert);
}

Splits FlexExchange::output_splits() const {
    return splits_of(counts_);
}

Tensor FlexExchange::sent_rows(const Tensor& hidden) const {
    return permute(hidden, sent_).first(gpu::to_host<std::int32_t>(sent_.offsets).back());
}

Tensor FlexExchange::received_rows(const Tensor& rows) const {
    const Splits counts = output_splits();
    std::int64_t total = 0;
    for (const std::int64_t count : counts) total += count;
    const Tensor result =
        Tensor::empty({total, rows.dim(1)}, rows.dtype(), MemorySpace::device);
    std::int64_t first = 0;
    for (int s = 0; s < slots_.num_ranks; first += counts[s++])
        if (counts[s] > 0)
            copy(distributed::rows_of(result, first, counts[s]),
                 distributed::rows_of(rows, s * slots_.per_source, counts[s]));
    return result;
}

Tensor FlexExchange::sources() const {
    return received_rows(Tensor::borrow(own(slots_.sources)));
}

Tensor FlexExchange::row_token(const RowOrder& local) const {
    std::vector<std::int32_t> rows = gpu::to_host<std::int32_t>(local.row_token());
    std::vector<std::int32_t> first = {0};
    for (const std::int64_t count : output_splits())
        first.push_back(first.back() + std::int32_t(count));
    for (std::int32_t& row : rows)
        if (row >= 0)
            row = first[row / slots_.per_source] + row % std::int32_t(slots_.per_source);
    return gpu::to_device(rows);
}

}  // namespace moe::optimized
