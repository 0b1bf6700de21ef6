// flex_slots.cu: sections of the ranks' heaps.

#include "optimized_gpu/flex_slots.h"

#include <algorithm>

namespace moe::optimized {
namespace {

/// Behind what is there; every section begins at a multiple of 256 bytes.
HeapSection append(FlexSlots& slots, DType dtype, std::int64_t rows, std::int64_t width) {
    constexpr std::size_t kAlignment = 256;
    const HeapSection section{slots.bytes, dtype, width};
    // Where nobody has tokens there is a heap all the same
    const std::size_t bytes = std::max<std::int64_t>(rows, 1) * section.row_bytes();
    slots.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return section;
}

}  // namespace

FlexSlots make_flex_slots(int num_ranks, std::int64_t max_tokens, const MoEConfig& config,
                          DType dtype) {
    FlexSlots slots;
    slots.num_ranks = num_ranks;
    slots.per_source = max_tokens;
    const std::int64_t rows = slots.num_slots(), H = config.latent_size();
    const std::int64_t choices =
        *config.expert_tensor_parallel_size * config.moe_router_topk;
    slots.tokens = append(slots, dtype, rows, H);
    slots.topk_probs = append(slots, DType::f32, rows, choices);
    slots.topk_ids = append(slots, DType::i32, rows, choices);
    slots.sources = append(slots, DType::i32, rows, 2);
    slots.counts = append(slots, DType::i32, num_ranks, 1);
    return slots;
}

std::size_t FlexSlots::layout() const {
    std::size_t hash = 0;
    for (const std::size_t number :
         {std::size_t(per_source), topk_probs.offset, topk_ids.offset, sources.offset,
          counts.offset, bytes})
        hash = hash * 0x9e3779b97f4a7c15u + number;
    return hash;
}

TensorView own_slots(const HeapSection& section, std::int64_t rows,
                     const distributed::PeerTable& table) {
    return {table.base[table.rank] + section.offset,
            section.dtype,
            {rows, section.width},
            MemorySpace::device};
}

}  // namespace moe::optimized
