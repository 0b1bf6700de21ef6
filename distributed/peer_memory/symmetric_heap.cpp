#include "distributed/peer_memory/symmetric_heap.h"

#include <algorithm>

namespace moe::distributed {

void SymmetricHeap::reserve(std::size_t bytes, std::size_t limit, MemorySpace space) {
    MOE_CHECK(bytes <= limit);
    const std::size_t had = this->bytes(space);
    if (bytes <= had) return;
    std::shared_ptr<PeerMemory>& memory = memory_[space == MemorySpace::device];
    memory.reset();  // not both at once
    // Twice as much as before, so that slowly rising needs do not grow it every time
    memory = group_->peer_memory(std::max(bytes, std::min(2 * had, limit)), space);
}

std::size_t SymmetricHeap::bytes(MemorySpace space) const {
    return memory(space) ? memory(space)->bytes() : 0;
}

}  // namespace moe::distributed
