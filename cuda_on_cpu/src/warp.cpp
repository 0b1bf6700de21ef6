// warp.cpp: shuffles, votes, matches and reductions: lanes bring their operands, the last
// one to arrive computes every lane's result.

#include <bit>

#include "block.h"

namespace cuda_on_cpu {
namespace {

std::string hex(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

/// Where a shuffle reads from; the lane itself when the target lies outside its segment.
int source_lane(const LaneOperation& operation, int lane) {
    const int width = operation.width, first = lane & ~(width - 1);
    const int argument = operation.argument;
    switch (operation.op) {
        case WarpOp::shfl: return first + (argument & (width - 1));
        case WarpOp::shfl_up:
            return unsigned(argument) > unsigned(lane - first) ? lane : lane - argument;
        case WarpOp::shfl_down:
            return unsigned(argument) >= unsigned(first + width - lane) ? lane
                                                                        : lane + argument;
        default: {  // shfl_xor: earlier segments may be read, later ones not
            const int target = lane ^ argument;
            return target < 0 || target >= first + width ? lane : target;
        }
    }
}

std::uint32_t reduce(WarpOp op, std::uint32_t a, std::uint32_t b) {
    const auto sa = std::int32_t(a), sb = std::int32_t(b);
    switch (op) {
        case WarpOp::add: return a + b;
        case WarpOp::min_signed: return std::uint32_t(sa < sb ? sa : sb);
        case WarpOp::max_signed: return std::uint32_t(sa > sb ? sa : sb);
        case WarpOp::min_unsigned: return a < b ? a : b;
        case WarpOp::max_unsigned: return a > b ? a : b;
        case WarpOp::bit_and: return a & b;
        case WarpOp::bit_or: return a | b;
        default: return a ^ b;
    }
}

}  // namespace

const char* name_of(const LaneOperation& operation) {
    if (operation.collective != nullptr) return operation.collective->name;
    const char* names[] = {"__syncwarp",        "__shfl_sync",       "__shfl_up_sync",
                           "__shfl_down_sync",  "__shfl_xor_sync",   "__all_sync",
                           "__any_sync",        "__ballot_sync",     "__match_any_sync",
                           "__match_all_sync",  "__reduce_add_sync", "__reduce_min_sync",
                           "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync",
                           "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync"};
    return names[int(operation.op)];
}

std::uint64_t Block::warp_operation(const LaneOperation& operation, Site site) {
    const int thread = current_, lane = thread % kWarpSize;
    Warp& warp = warps_[thread / kWarpSize];
    warp.alike = is_alike(warp, operation, site);
    check_mask(warp, lane, operation, site);
    if (faulted_) abandon();
    warp.lanes[lane] = operation;
    warp.waiting |= 1u << lane;
    wait(State::warp, site);
    if (traced_) note_arrival();
    try_warp(thread / kWarpSize);
    if (faulted_) abandon();
    switch_on();
    return warp.lanes[lane].result;
}

void Block::collective(const Collective& what, void* operands, Site site) {
    warp_operation({WarpOp::collective, 0xffffffffu,
                    reinterpret_cast<std::uintptr_t>(operands), 0, kWarpSize, 0, &what},
                   site);
}

/// Nearly always so: all else takes a look at every lane on every arrival.
bool Block::is_alike(const Warp& warp, const LaneOperation& operation, Site site) const {
    if (warp.waiting == 0) return true;
    const int other = std::countr_zero(warp.waiting);
    const LaneOperation& theirs = warp.lanes[other];
    return warp.alike && theirs.mask == operation.mask && theirs.op == operation.op &&
           theirs.collective == operation.collective &&
           threads_[(current_ & ~(kWarpSize - 1)) + other].site == site;
}

/// What hardware leaves undefined is an error: a mask without its own lane, a width that
/// is no power of two, and lanes of one mask that disagree.
void Block::check_mask(const Warp& warp, int lane, const LaneOperation& operation,
                       Site site) {
    const auto refuse = [&](const std::string& why) {
        note_fault(cudaErrorLaunchFailure, name_of(operation) + why, site);
    };
    if (!(operation.mask >> lane & 1))
        refuse(": mask " + hex(operation.mask) + " lacks the calling lane " +
               std::to_string(lane));
    if (operation.width < 1 || operation.width > 32 ||
        !std::has_single_bit(unsigned(operation.width)))
        refuse(": width = " + std::to_string(operation.width) +
               ": must be a power of two up to 32");
    if (warp.alike) return;
    const int first = current_ - lane;
    for (int other = 0; other < kWarpSize; ++other) {
        if (!(warp.waiting >> other & 1)) continue;
        const LaneOperation& theirs = warp.lanes[other];
        // Both must name each other: a lane outside the mask may wait for us elsewhere.
        if (!(operation.mask >> other & 1) || !(theirs.mask >> lane & 1)) continue;
        const Site their_site = threads_[first + other].site;
        if (theirs.mask != operation.mask || theirs.op != operation.op ||
            theirs.collective != operation.collective || !(their_site == site))
            refuse(" with mask " + hex(operation.mask) + ": lane " +
                   std::to_string(other) + " waits at " + name_of(theirs) +
                   " with mask " + hex(theirs.mask) + ", " + their_site.file + ":" +
                   std::to_string(their_site.line));
    }
}

/// Completes every operation whose lanes, those still alive, have all arrived.
void Block::try_warp(int index) {
    Warp& warp = warps_[index];
    if (warp.alike && warp.waiting != 0 &&
        warp.waiting != (warp.lanes[std::countr_zero(warp.waiting)].mask & warp.live))
        return;
    for (unsigned pending = warp.waiting; pending != 0;) {
        const unsigned mask = warp.lanes[std::countr_zero(pending)].mask;
        const unsigned expected = mask & warp.live;
        unsigned arrived = 0;
        for (unsigned lanes = warp.waiting; lanes != 0; lanes &= lanes - 1)
            if (const int lane = std::countr_zero(lanes); warp.lanes[lane].mask == mask)
                arrived |= 1u << lane;
        pending &= ~arrived;
        if (arrived != expected) continue;
        warp.waiting &= ~expected;
        const LaneOperation& first = warp.lanes[std::countr_zero(expected)];
        watch_.warp_meets(index, expected,
                          first.op == WarpOp::sync || (first.collective != nullptr &&
                                                       first.collective->orders_memory));
        if (traced_)
            trace_wait(index, expected, name_of(first),
                       threads_[index * kWarpSize + std::countr_zero(expected)].site);
        complete_warp(warp, expected);
        for (unsigned lanes = expected; lanes != 0; lanes &= lanes - 1)
            release(index * kWarpSize + std::countr_zero(lanes));
    }
}

void Block::complete_warp(Warp& warp, unsigned mask) {
    const int first = std::countr_zero(mask);
    const WarpOp op = warp.lanes[first].op;
    if (op == WarpOp::sync) return;
    if (op == WarpOp::collective) return complete_collective(warp, mask);
    if (op <= WarpOp::shfl_xor || op == WarpOp::match_any) {
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            compute_lane(warp, std::countr_zero(lanes), mask);
        return;
    }
    // Votes, reductions and match_all: one result for all
    unsigned ballot = 0;
    std::uint32_t reduced = std::uint32_t(warp.lanes[first].value);
    bool same = true;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        const std::uint64_t value = warp.lanes[lane].value;
        if (value != 0) ballot |= 1u << lane;
        if (lane != first) reduced = reduce(op, reduced, std::uint32_t(value));
        same = same && value == warp.lanes[first].value;
    }
    const std::uint64_t result = op == WarpOp::ballot      ? ballot
                                 : op == WarpOp::any       ? ballot != 0
                                 : op == WarpOp::all       ? ballot == mask
                                 : op == WarpOp::match_all ? (same ? mask : 0)
                                                           : reduced;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
        warp.lanes[std::countr_zero(lanes)].result = result;
}

void Block::complete_collective(Warp& warp, unsigned mask) {
    const int index = int(&warp - warps_.data()), first = std::countr_zero(mask);
    const Collective& what = *warp.lanes[first].collective;
    const Site site = threads_[index * kWarpSize + first].site;
    if (mask != 0xffffffffu)
        return note_fault({std::string(what.name) +
                           ": all 32 lanes of a warp execute it "
                           "together, but of warp " +
                           std::to_string(index) + " only " +
                           std::to_string(std::popcount(mask)) + " are there"},
                          site);
    const observe::Unseen unseen;
    void* operands[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane)
        operands[lane] = reinterpret_cast<void*>(std::uintptr_t(warp.lanes[lane].value));
    try {
        what.complete(*this, index, operands, site);
    } catch (const Fault& fault) {
        note_fault(fault, site);
    }
}

void Block::compute_lane(Warp& warp, int lane, unsigned mask) {
    LaneOperation& own = warp.lanes[lane];
    if (own.op == WarpOp::match_any) {
        unsigned equal = 0;
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            if (const int other = std::countr_zero(lanes);
                warp.lanes[other].value == own.value)
                equal |= 1u << other;
        own.result = equal;
        return;
    }
    const int source = source_lane(own, lane);
    if (!(mask >> source & 1)) {
        // Blame the lane that reads, wherever the operation was completed from.
        const int thread = int(&warp - warps_.data()) * kWarpSize + lane;
        const Site site = threads_[thread].site;
        note_fault(cudaErrorLaunchFailure,
                   std::string(name_of(own)) + ": lane " + std::to_string(lane) +
                       " reads lane " + std::to_string(source) + ", which " +
                       (warp.live >> source & 1 ? "is not in the mask " + hex(own.mask)
                                                : std::string("has exited")),
                   site);
    }
    own.result = warp.lanes[source].value;
}

}  // namespace cuda_on_cpu
