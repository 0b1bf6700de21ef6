// races.cpp: what orders the threads of a block and of other blocks, and the accesses
// that nothing orders.

#include "observe/races.h"

#include <bit>

#include "block.h"
#include "observe/profile.h"

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

// ------------------------------------------------------------------------ order in a
// block
void RaceFinder::begin_block(Operation operation, std::int64_t block, int threads) {
    operation_ = operation;
    actor_ = memory_.add_actor(operation, block);
    phase_ = 0;
    span_ = memory_.add_span(actor_, phase_);
    count_ = threads;
    any_known_ = false;
    threads_.assign(threads, {});
}

/// Whoever was at the barrier knows all that the others did and knew. A thread that has
/// left was not there: nothing orders what it did last.
void RaceFinder::open_barrier() {
    Clock all;
    if (any_known_)
        for (const Thread& thread : threads_)
            if (thread.last_phase == ~0u && thread.known) join(all, *thread.known);
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

// -------------------------------------------------------------- order by what is
// released
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

// --------------------------------------------------------------------------------
// accesses
bool RaceFinder::is_ordered(const Stamp& earlier, int thread) const {
    const Span& span = memory_.spans[earlier.span];
    if (span.actor == actor_) {
        if (earlier.thread() == thread) return true;
        if (span.phase < phase_ && threads_[earlier.thread()].last_phase > span.phase)
            return true;
    } else {
        if (region_->allocation == nullptr) return true;  // an earlier block's arena
        const Operation operation = memory_.actors[span.actor].operation;
        if (operation != operation_ && memory_.order.is_before(operation, operation_))
            return true;
    }
    if (threads_.empty() || !threads_[thread].known) return false;
    const auto found = threads_[thread].known->find(span.actor);
    return found != threads_[thread].known->end() &&
           found->second.knows(span.phase, earlier.thread(), earlier.epoch);
}

void RaceFinder::check(Cell& cell, const Stamp& now) {
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

/// Of reads and atomics that have no order between them two are kept, as different as can
/// be: whoever writes later is ordered after both, or races with one.
void RaceFinder::keep(Cell& cell, const Stamp& now) const {
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

void RaceFinder::access(int thread, const Region& region, const Record& record,
                        std::uint32_t spot) {
    region_ = &region;
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

// ---------------------------------------------------------------------------------
// stories
std::string RaceFinder::place(std::uint64_t address) const {
    if (region_->allocation != nullptr) return profile().memory.describe(address);
    return "offset " + std::to_string(address - region_->base) + " of shared memory";
}

std::string RaceFinder::name_of(const Stamp& stamp) const {
    const Actor& actor = memory_.actors[memory_.spans[stamp.span].actor];
    const OperationName& name = memory_.names[actor.operation];
    const std::string what = stamp.is_atomic() ? "atomic access"
                             : stamp.writes()  ? "write"
                                               : "read";
    if (actor.block < 0) return what + " by " + name.name;
    return what + " at " + to_string(profile().spots.line(stamp.spot())) + " by " +
           thread_name(name.grid, name.block, actor.block, stamp.thread());
}

void RaceFinder::tell_race(const Stamp& earlier, const Stamp& now) {
    const Actor& other = memory_.actors[memory_.spans[earlier.span].actor];
    enum Relation { warp, block, grid, streams } relation = streams;
    if (memory_.spans[earlier.span].actor == actor_)
        relation =
            earlier.thread() / kWarpSize == now.thread() / kWarpSize ? warp : block;
    else if (other.operation == operation_)
        relation = grid;
    const SourceLine line = profile().spots.line(now.spot());
    const SourceLine other_line = profile().spots.line(earlier.spot());
    if (!earlier.writes()) forget_unwritten(earlier.spot());
    std::string text;
    if (memory_.told.insert({earlier.spot(), now.spot(), relation}).second) {
        const std::string& name = memory_.names[operation_].name;
        text = "race on " + std::to_string(size_) + " bytes, " + place(address_) + ": " +
               name_of(now) + ", and " + name_of(earlier) + ", in kernel " + name;
        if (relation == streams)
            text += " on " + memory_.order.stream_of(operation_) + " and " +
                    memory_.names[other.operation].name + " on " +
                    memory_.order.stream_of(other.operation) +
                    ": an event between the streams would order them";
        else
            text += relation == warp
                        ? ": __syncwarp() would order them, a shuffle does not"
                    : relation == block
                        ? ": __syncthreads() would order them"
                        : ": blocks are ordered by atomics with fences, or by release "
                          "and acquire";
    }
    profile().find(Finding::Kind::race, line, other_line, text);
}

// A list is read as soon as its warp meets, perhaps before that of the thread which wrote
// what this one reads. If nothing orders the two that is a race, and told as one: so it
// is settled at the end whether nobody had written.
void RaceFinder::note_unwritten(int thread, const Record& record, std::uint32_t spot) {
    const OperationName& name = memory_.names[operation_];
    auto& list = region_->allocation == nullptr ? unwritten_ : memory_.unwritten;
    list.insert(
        {record.address(),
         {record.size(), spot,
          "read of " + std::to_string(record.size()) +
              " bytes that nobody has written, " + place(record.address()) + ", at " +
              to_string(profile().spots.line(spot)) + ", in kernel " + name.name + ", " +
              thread_name(name.grid, name.block, memory_.actors[actor_].block, thread)}});
}

/// The read at hand is one side of a race.
void RaceFinder::forget_unwritten(std::uint32_t spot) {
    auto& list = region_->allocation == nullptr ? unwritten_ : memory_.unwritten;
    for (auto at = list.lower_bound(address_ - 16);
         at != list.end() && at->first < address_ + size_;)
        at = at->second.spot == spot && at->first + at->second.size > address_
                 ? list.erase(at)
                 : std::next(at);
}

void tell_unwritten(UnwrittenReads& list) {
    for (const auto& [address, read] : list)
        profile().find(Finding::Kind::uninitialised, profile().spots.line(read.spot), {},
                       read.text);
    list.clear();
}

void RaceFinder::end_block() {
    tell_unwritten(unwritten_);
}

}  // namespace cuda_on_cpu::observe
