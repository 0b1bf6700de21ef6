#include "bench/memory_counter.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "core/transfer.h"

namespace moe::bench {
namespace {

struct Counter {
    std::mutex mutex;
    MemoryFunctions counted;  // those that do the work; none before count_memory()
    std::unordered_map<void*, std::size_t> sizes;
    MemoryUse use;
};

template <MemorySpace space>
Counter& counter() {
    // Never destroyed: the last tensors may be freed after all statics.
    static Counter& only = *new Counter;
    return only;
}

Counter& counter_of(MemorySpace space) {
    return space == MemorySpace::host ? counter<MemorySpace::host>()
                                      : counter<MemorySpace::device>();
}

template <MemorySpace space>
void* allocate(std::size_t bytes) {
    Counter& mine = counter<space>();
    void* pointer = mine.counted.allocate(bytes);
    const std::lock_guard lock(mine.mutex);
    mine.sizes[pointer] = bytes;
    mine.use.now += std::int64_t(bytes);
    mine.use.peak = std::max(mine.use.peak, mine.use.now);
    return pointer;
}

template <MemorySpace space>
void release(void* pointer) {
    Counter& mine = counter<space>();
    {
        // Before it is free: another thread may be given the same address at once.
        const std::lock_guard lock(mine.mutex);
        const auto found = mine.sizes.find(pointer);
        mine.use.now -= std::int64_t(found->second);
        mine.sizes.erase(found);
    }
    mine.counted.release(pointer);
}

template <MemorySpace space>
void start() {
    Counter& mine = counter<space>();
    const std::lock_guard lock(mine.mutex);
    if (mine.counted.allocate != nullptr) return;
    mine.counted = memory_functions(space);
    MemoryFunctions functions = mine.counted;
    functions.allocate = allocate<space>;
    functions.release = release<space>;
    register_memory_space(space, functions);
}

}  // namespace

void count_memory(MemorySpace space) {
    space == MemorySpace::host ? start<MemorySpace::host>()
                               : start<MemorySpace::device>();
}

MemoryUse memory_use(MemorySpace space) {
    Counter& counted = counter_of(space);
    const std::lock_guard lock(counted.mutex);
    return counted.use;
}

void reset_memory_peak(MemorySpace space) {
    Counter& counted = counter_of(space);
    const std::lock_guard lock(counted.mutex);
    counted.use.peak = counted.use.now;
}

}  // namespace moe::bench
