/// @file
/// Races: two accesses to a byte, at least one a write, that nothing orders. Because this
/// reasons about order and not about time, one run finds what a thousand lucky runs miss.
#pragma once

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_on_cpu/observe.h"
#include "observe/clocks.h"
#include "observe/memory.h"
#include "observe/order.h"
#include "observe/quiet.h"
#include "observe/record.h"
#include "observe/shadow.h"

namespace cuda_on_cpu::observe {

/// A block, or a copy of the host's, as long as its accesses are remembered.
struct Actor {
    Operation operation = 0;
    std::int64_t block = -1;  ///< -1: the host's copy or fill
};
/// A block between two of its barriers.
struct Span {
    std::uint32_t actor = 0, phase = 0;
};
/// What messages say of a launch or copy.
struct OperationName {
    std::string name;
    dim3 grid, block;
};

/// Reads of what nobody has written yet, by address.
struct UnwrittenRead {
    std::size_t size;
    std::uint32_t spot;
    std::string text;
};
using UnwrittenReads = std::multimap<std::uint64_t, UnwrittenRead>;
/// Tells of those that are left, and empties the list.
void tell_unwritten(UnwrittenReads& list);

/// What outlives a block.
struct RaceMemory {
    StreamOrder order;
    std::vector<OperationName> names;  ///< index: Operation
    std::vector<Actor> actors;
    std::vector<Span> spans = std::vector<Span>(1);
    std::map<std::uint64_t, Clock> objects;  ///< what was released, by address
    UnwrittenReads unwritten;                ///< of global memory, in the launch
    /// Pairs of accesses that were told, by place and relation.
    std::set<std::tuple<std::uint32_t, std::uint32_t, int>> told;

    std::uint32_t add_actor(Operation operation, std::int64_t block);
    std::uint32_t add_span(std::uint32_t actor, std::uint32_t phase);
    void set_name(Operation operation, OperationName name);
};

/// Memory in which an access lies.
struct Region {
    Shadow* shadow = nullptr;
    std::uint64_t base = 0;
    const Allocation* allocation = nullptr;  ///< null: shared memory
    UnwrittenReads* unwritten = nullptr;     ///< of shared memory
    std::int64_t block = -1;                 ///< whose shared memory
};

/// Looks for races of the accesses of one actor.
class RaceFinder {
  public:
    explicit RaceFinder(RaceMemory& memory) : memory_(memory) {}

    // ------------------------------------------------------------------------- a block
    void begin_block(Operation operation, std::int64_t block, int threads);
    /// The block runs together with others, of which `first` began first.
    void join_cluster(const RaceFinder& first) {
        is_alone_ = false;
        first_of_cluster_ = first.actor_;
    }
    void open_barrier();
    void exit(int thread);
    void meet(int warp, unsigned mask);
    /// A fence, an acquire or a release of `thread`, whose accesses so far are known.
    void fence(int thread);
    void acquire(int thread, std::uint64_t object);
    void release(int thread, std::uint64_t object);
    /// An atomic access without an order of its own: it takes part in fences.
    void touch_atomically(int thread, std::uint64_t object, bool reads, bool writes);

    // ----------------------------------------------------------------- the host's copy
    void begin_copy(Operation operation);
    /// @param forget  nothing later can race with it: the host waits
    void copy_access(const Region& region, std::size_t offset, std::size_t bytes,
                     bool writes, std::uint32_t spot, bool forget);

    /// Those reads of shared memory need no access(), until the thread's order changes.
    QuietReads quiet_reads(int thread) const {
        const bool knows_barriers = is_alone_ && !any_left_ && !threads_[thread].known;
        return {knows_barriers ? span_ : 0, thread};
    }
    void access(int thread, const Region& region, const Record& record,
                std::uint32_t spot);

  private:
    struct Thread {
        std::uint32_t epoch = 1;
        std::uint32_t last_phase = ~0u;  ///< in which it exited
        SharedClock known;
        SharedClock fenced;   ///< what a relaxed write after a fence gives away
        SharedClock pending;  ///< what relaxed reads saw, until a fence
    };

    bool is_ordered(const Stamp& earlier, int thread) const;
    bool is_ordered_across(const Stamp& earlier, int thread) const;
    void check(Cell& cell, const Stamp& now);
    void keep(Cell& cell, const Stamp& now) const;
    void set_known(Thread& thread, Clock clock);
    /// All that the thread has done and knows, for others; its next epoch begins.
    Clock give_away(int thread);
    [[gnu::cold]] void tell_race(const Stamp& earlier, const Stamp& now);
    [[gnu::cold]] void note_unwritten(int thread, const Record& record,
                                      std::uint32_t spot);
    void forget_unwritten(std::uint32_t spot);
    /// Of the memory at hand.
    UnwrittenReads& unwritten() const {
        return region_->unwritten != nullptr ? *region_->unwritten : memory_.unwritten;
    }
    std::string place(std::uint64_t address) const;
    std::string name_of(const Stamp& stamp) const;

    RaceMemory& memory_;
    Operation operation_ = 0;
    std::uint32_t actor_ = 0, phase_ = 0, span_ = 0;
    int count_ = 0;
    bool any_known_ = false;  ///< some thread knows more than its barriers say
    bool any_left_ = false;   ///< some thread has left
    bool is_alone_ = true;    ///< no other block reaches the shared memory
    std::uint32_t first_of_cluster_ = 0;  ///< its actor
    std::vector<Thread> threads_;
    // The access at hand
    const Region* region_ = nullptr;
    const Clock* known_ = nullptr;  ///< to its thread
    bool barriers_tell_ = false;    ///< an earlier span in this memory is ordered
    std::uint64_t address_ = 0;
    std::size_t size_ = 0;
};

}  // namespace cuda_on_cpu::observe
