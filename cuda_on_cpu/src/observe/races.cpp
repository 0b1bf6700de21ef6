// races.cpp: what orders the threads of a block and of other blocks, and the accesses
// that nothing orders.

#include "observe/races.h"

#include <bit>
#include <utility>

#include "block.h"

namespace cuda_on_cpu::observe {

std::uint32_t RaceMemory::add_actor(Operation operation, std::int64_t block) {
    actors.push_back({operation, block});
    return std::uint32_t(actors.size() - 1);
}
std::uint32_t RaceMemory::add_span(std::uint32_t actor, std::uint32_t phase) {
    spans.push_back({actor, phase});
    return std::uint32_t(spans.size() - 1);
}
void RaceMemory::set_name(Operation operation, OperationName name) {
    if (operation >= names.size()) names.resize(operation + 1);
    names[operation] = std::move(name);
}

// ---------------------------------------------------------------------- order in a block
void RaceFinder::begin_block(Operation operation, std::int64_t block, int threads) {
    operation_ = operation;
    actor_ = memory_.add_actor(operation, block);
    phase_ = 0;
    span_ = memory_.add_span(actor_, phase_);
    count_ = threads;
    any_known_ = any_left_ = false;
    is_alone_ = true;
    first_of_cluster_ = actor_;
    threads_.assign(threads, {});
}

/// Whoever was at the barrier knows all that the others did and knew. A thread that has
/// left was not there: nothing orders what it did last.
void RaceFinder::open_barrier() {
    Clock all;
    if (any_known_)
        for (const Clock* last = nullptr; const Thread& thread : threads_)
            if (thread.last_phase == ~0u && thread.known &&
                std::exchange(last, thread.known.get()) != thread.known.get())
                join(all, *thread.known);
    all.erase(actor_);
    any_known_ = !all.empty();
    const SharedClock known = any_known_ ? std::make_shared<const Clock>(all) : nullptr;
    ++phase_;
    span_ = memory_.add_span(actor_, phase_);
    for (Thread& thread : threads_) {
        thread.known = known;
        thread.epoch = 1;
    }
}

void RaceFinder::exit(int thread) {
    threads_[thread].last_phase = phase_;
    any_left_ = true;
}

void RaceFinder::set_known(Thread& thread, Clock clock) {
    thread.known = std::make_shared<const Clock>(std::move(clock));
    any_known_ = true;
}

void RaceFinder::meet(int warp, unsigned mask) {
    Clock all;
    const Clock* last = nullptr;
    BlockClock& own = all[actor_];
    own.phase = phase_;
    own.epochs.resize(count_);
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int thread = warp * kWarpSize + std::countr_zero(lanes);
        Thread& each = threads_[thread];
        if (each.known && each.known.get() != last) join(all, *each.known);
        last = each.known.get();
        own.epochs[thread] = std::max(own.epochs[thread], each.epoch++);
    }
    const SharedClock known = std::make_shared<const Clock>(std::move(all));
    any_known_ = true;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
        threads_[warp * kWarpSize + std::countr_zero(lanes)].known = known;
}

// ------------------------------------------------------------- order by what is released
Clock RaceFinder::give_away(int index) {
    Thread& thread = threads_[index];
    Clock clock = thread.known ? *thread.known : Clock{};
    BlockClock own{phase_, {}};
    own.epochs.resize(count_);
    own.epochs[index] = thread.epoch++;
    clock[actor_].join(own);
    return clock;
}

void RaceFinder::release(int thread, std::uint64_t object) {
    join(memory_.objects[object], give_away(thread));
}

void RaceFinder::acquire(int thread, std::uint64_t object) {
    const auto found = memory_.objects.find(object);
    if (found == memory_.objects.end()) return;
    Clock clock = threads_[thread].known ? *threads_[thread].known : Clock{};
    join(clock, found->second);
    for (const auto& [actor, known] : found->second) {
        const Operation from = memory_.actors[actor].operation;
        if (from != operation_ && !memory_.order.is_before(from, operation_))
            memory_.order.hand_over(from, operation_);
    }
    set_known(threads_[thread], std::move(clock));
}

void RaceFinder::fence(int index) {
    Thread& thread = threads_[index];
    if (thread.pending) {
        Clock clock = thread.known ? *thread.known : Clock{};
        join(clock, *thread.pending);
        set_known(thread, std::move(clock));
        thread.pending = nullptr;
    }
    thread.fenced = std::make_shared<const Clock>(give_away(index));
}

void RaceFinder::touch_atomically(int index, std::uint64_t object, bool reads,
                                  bool writes) {
    Thread& thread = threads_[index];
    if (const auto found = memory_.objects.find(object);
        reads && found != memory_.objects.end()) {
        Clock seen = thread.pending ? *thread.pending : Clock{};
        join(seen, found->second);
        thread.pending = std::make_shared<const Clock>(std::move(seen));
    }
    if (writes && thread.fenced) join(memory_.objects[object], *thread.fenced);
}

// ------------------------------------------------------------------------------ accesses
// TUTORIAL: in shared memory nearly all is decided by one comparison: what was done in an
// earlier span of the block is ordered by the barrier between, what was done in this one
// by others is not, unless the thread knows more than its barriers say.
inline bool RaceFinder::is_ordered(const Stamp& earlier, int thread) const {
    if (earlier.span == span_) {
        if (earlier.thread() == thread) return true;
        if (known_ == nullptr) return false;
    } else if (barriers_tell_) {
        return true;
    }
    return is_ordered_across(earlier, thread);
}

bool RaceFinder::is_ordered_across(const Stamp& earlier, int thread) const {
    const Span& span = memory_.spans[earlier.span];
    if (span.actor == actor_) {
        if (earlier.thread() == thread) return true;
        if (span.phase < phase_ && threads_[earlier.thread()].last_phase > span.phase)
            return true;
    } else if (region_->allocation == nullptr) {
        if (span.actor < first_of_cluster_) return true;  // of an earlier block here
    } else {
        const Operation operation = memory_.actors[span.actor].operation;
        if (operation != operation_ && memory_.order.is_before(operation, operation_))
            return true;
    }
    if (known_ == nullptr) return false;
    const auto found = known_->find(span.actor);
    return found != known_->end() &&
           found->second.knows(span.phase, earlier.thread(), earlier.epoch);
}

/// Of reads and atomics that have no order between them two are kept, as different as can
/// be: whoever writes later is ordered after both, or races with one.
inline void RaceFinder::keep(Cell& cell, const Stamp& now) const {
    auto& [first, second] = cell.others;
    const auto may_replace = [&](const Stamp& old) {
        const bool same_kind = ((old.who ^ now.who) >> 10 & 3) == 0;
        return old.span == 0 || (same_kind && is_ordered(old, now.thread()));
    };
    if (may_replace(first)) {
        first = now;
        if (second.span != 0 && may_replace(second)) second = {};
    } else if (may_replace(second) ||
               (second.span == first.span && now.span != first.span) ||
               (second.thread() / kWarpSize == first.thread() / kWarpSize &&
                now.thread() / kWarpSize != first.thread() / kWarpSize)) {
        second = now;
    }
}

inline void RaceFinder::check(Cell& cell, const Stamp& now) {
    const int thread = now.thread();
    if (cell.write.span != 0 && !is_ordered(cell.write, thread))
        tell_race(cell.write, now);
    for (const Stamp& other : cell.others) {
        if (other.span == 0) break;
        const bool conflict =
            (other.writes() || now.writes()) && !(other.is_atomic() && now.is_atomic());
        if (conflict && !is_ordered(other, thread)) tell_race(other, now);
    }
    if (now.writes() && !now.is_atomic()) {
        cell.write = now;
        cell.others = {};
    } else {
        keep(cell, now);
    }
}

void RaceFinder::access(int thread, const Region& region, const Record& record,
                        std::uint32_t spot) {
    region_ = &region;
    known_ = threads_[thread].known.get();
    barriers_tell_ = region.allocation == nullptr && is_alone_ && !any_left_;
    address_ = record.address();
    size_ = record.size();
    const std::size_t offset = address_ - region.base;
    const Kind kind = record.kind();
    if (reads(kind) && !region.shadow->is_written(offset, size_))
        note_unwritten(thread, record, spot);
    const Stamp now{span_, Stamp::pack(thread, is_atomic(kind), writes(kind), spot),
                    threads_[thread].epoch};
    region.shadow->visit(offset, size_, [&](Cell& cell) { check(cell, now); });
    if (writes(kind)) region.shadow->set_written(offset, size_);
}

void RaceFinder::begin_copy(Operation operation) {
    operation_ = operation;
    actor_ = memory_.add_actor(operation, -1);
    phase_ = 0;
    span_ = memory_.add_span(actor_, 0);
    threads_.clear();
}

void RaceFinder::copy_access(const Region& region, std::size_t offset, std::size_t bytes,
                             bool writes, std::uint32_t spot, bool forget) {
    region_ = &region;
    known_ = nullptr;
    barriers_tell_ = false;
    address_ = region.base + offset;
    size_ = bytes;
    const Stamp now{span_, Stamp::pack(0, false, writes, spot), 1};
    const auto visit = [&](Cell& cell) {
        check(cell, now);
        if (forget && writes) cell = {};
    };
    if (forget)
        region.shadow->visit_touched(offset, bytes, visit);
    else
        region.shadow->visit(offset, bytes, visit);
}

}  // namespace cuda_on_cpu::observe
