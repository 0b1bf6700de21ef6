// races_told.cpp: what is said of a race, and of reads of what nobody has written.

#include "observe/profile.h"
#include "observe/races.h"

namespace cuda_on_cpu::observe {

std::string RaceFinder::place(std::uint64_t address) const {
    if (region_->allocation != nullptr) return profile().memory.describe(address);
    const Actor& actor = memory_.actors[actor_];
    const std::string text =
        "offset " + std::to_string(address - region_->base) + " of shared memory";
    if (region_->block == actor.block) return text;
    return text + " of " + block_name(memory_.names[operation_].grid, region_->block);
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
    enum Relation { warp, block, cluster, grid, streams } relation = streams;
    if (memory_.spans[earlier.span].actor == actor_)
        relation =
            earlier.thread() / kWarpSize == now.thread() / kWarpSize ? warp : block;
    else if (other.operation == operation_)
        relation = region_->allocation == nullptr ? cluster : grid;
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
                    : relation == block ? ": __syncthreads() would order them"
                    : relation == cluster
                        ? ": the cluster's barrier would order them, or an mbarrier"
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
    UnwrittenReads& list = unwritten();
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
    UnwrittenReads& list = unwritten();
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

}  // namespace cuda_on_cpu::observe
