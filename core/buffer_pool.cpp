#include "core/buffer_pool.h"

#include <atomic>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "core/transfer.h"

namespace moe {
namespace {

std::atomic<std::int64_t> bytes_in_use = 0;
std::atomic<std::int64_t> most_bytes_in_use = 0;

/// Counts a tensor's bytes as long as it lives.
class InUse {
  public:
    InUse(std::size_t bytes, const MemoryFunctions& memory)
        : bytes_(std::int64_t(bytes)), count_of_space_(memory.count) {
        count(bytes_);
    }
    /// Takes it over: counted twice, be it for a moment, it would be in the peak.
    InUse(InUse&& other) noexcept
        : bytes_(std::exchange(other.bytes_, 0)),
          count_of_space_(other.count_of_space_) {}
    InUse& operator=(InUse&&) = delete;
    ~InUse() { count(-bytes_); }

  private:
    void count(std::int64_t change) const {
        const std::int64_t now = bytes_in_use += change;
        std::int64_t most = most_bytes_in_use;
        while (now > most && !most_bytes_in_use.compare_exchange_weak(most, now)) {
        }
        if (count_of_space_ != nullptr) count_of_space_(change);
    }
    std::int64_t bytes_;
    void (*count_of_space_)(std::int64_t change);
};

}  // namespace

/// What nobody uses, by memory space, lane and size.
struct BufferPool::Blocks {
    using Key = std::tuple<MemorySpace, const void*, std::size_t>;
    std::mutex mutex;
    std::multimap<Key, void*> free;
    bool is_open = true;  // false once the pool is gone
    std::int64_t allocations = 0;
    std::size_t bytes = 0;

    /// A block of at least that size, and its size; null when there is none. One that is
    /// more than twice as large is left for whoever needs it.
    std::pair<void*, std::size_t> take(const Key& wanted) {
        const std::lock_guard lock(mutex);
        const auto found = free.lower_bound(wanted);
        if (found == free.end()) return {nullptr, 0};
        const auto [space, lane, size] = found->first;
        if (space != std::get<0>(wanted) || lane != std::get<1>(wanted) ||
            size > 2 * std::get<2>(wanted))
            return {nullptr, 0};
        const std::pair<void*, std::size_t> block = {found->second, size};
        free.erase(found);
        return block;
    }
    void give_back(void* block, const Key& key) {
        const std::lock_guard lock(mutex);
        if (is_open)
            free.insert({key, block});
        else
            memory_functions(std::get<0>(key)).release(block);
    }
};

thread_local BufferPool* BufferPool::current_ = nullptr;
thread_local const void* BufferPool::lane_ = nullptr;

BufferPool::BufferPool() : blocks_(std::make_shared<Blocks>()) {}

BufferPool::~BufferPool() {
    const std::lock_guard lock(blocks_->mutex);
    blocks_->is_open = false;
    for (const auto& [key, block] : blocks_->free)
        memory_functions(std::get<0>(key)).release(block);
    blocks_->free.clear();
}

BufferPool::Scope::Scope(BufferPool& pool) : outer_(std::exchange(current_, &pool)) {}
BufferPool::Scope::~Scope() {
    current_ = outer_;
}

BufferPool::Lane::Lane(const void* stream) : outer_(std::exchange(lane_, stream)) {}
BufferPool::Lane::~Lane() {
    lane_ = outer_;
}

std::int64_t BufferPool::allocations() const {
    const std::lock_guard lock(blocks_->mutex);
    return blocks_->allocations;
}

std::size_t BufferPool::bytes() const {
    const std::lock_guard lock(blocks_->mutex);
    return blocks_->bytes;
}

std::shared_ptr<void> BufferPool::allocate(std::size_t bytes, MemorySpace space) {
    const MemoryFunctions& memory = memory_functions(space);
    if (current_ == nullptr)
        return {memory.allocate(bytes),
                [counted = InUse(bytes, memory),
                 release = memory.release](void* pointer) { release(pointer); }};
    const std::shared_ptr<Blocks> blocks = current_->blocks_;
    auto [block, size] = blocks->take({space, lane_, bytes});
    if (block == nullptr) {
        block = memory.allocate(bytes);
        size = bytes;
        const std::lock_guard lock(blocks->mutex);
        ++blocks->allocations;
        blocks->bytes += bytes;
    }
    return {block, [counted = InUse(bytes, memory), blocks,
                    key = Blocks::Key{space, lane_, size}](void* pointer) {
                blocks->give_back(pointer, key);
            }};
}

std::int64_t tensor_bytes() {
    return bytes_in_use;
}

std::int64_t peak_tensor_bytes() {
    return most_bytes_in_use;
}

void reset_peak_tensor_bytes() {
    most_bytes_in_use = bytes_in_use.load();
}

}  // namespace moe
