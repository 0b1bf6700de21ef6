// block_waits.cpp: what a block's threads wait for: in words, and as bars of a trace.

#include <algorithm>
#include <bit>

#include "block.h"
#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {

// ------------------------------------------------------------------------------ in words
std::string Block::waiting_list() const {
    std::string list;
    for (int first = 0; first < count_; first += kWarpSize) {
        const int end = std::min(first + kWarpSize, count_);
        std::vector<bool> told(end - first, false);
        for (int t = first; t < end; ++t) {
            const Thread& thread = threads_[t];
            if (told[t - first]) continue;
            int same = 0;
            for (int u = t; u < end; ++u) {
                const Thread& other = threads_[u];
                if (states_[u] != states_[t] || !(other.site == thread.site) ||
                    other.object != thread.object)
                    continue;
                told[u - first] = true;
                ++same;
            }
            list += (list.empty() ? "" : "; ") + std::string("warp ") +
                    std::to_string(first / kWarpSize) + ": " + std::to_string(same) +
                    (same == 1 ? " thread" : " threads") + waiting_at(t);
        }
    }
    return list;
}

std::string Block::waiting_for(int thread) const {
    switch (states_[thread]) {
        case State::barrier: return "__syncthreads";
        case State::warp:
            return name_of(warps_[thread / kWarpSize].lanes[thread % kWarpSize]);
        case State::cluster: return "cluster_wait";
        default: return hopper_->describe_wait(*this, thread);
    }
}

/// Another thread of its warp waits for the same.
bool Block::warp_waits(int thread, State state, std::uint64_t object) const {
    const int first = thread / kWarpSize * kWarpSize;
    for (int t = first; t < std::min(first + kWarpSize, count_); ++t)
        if (t != thread && states_[t] == state && threads_[t].object == object)
            return true;
    return false;
}

std::string Block::waiting_at(int thread) const {
    if (states_[thread] == State::exited) return " exited";
    const Site site = threads_[thread].site;
    return " at " + waiting_for(thread) + " " + site.file + ":" +
           std::to_string(site.line);
}

// --------------------------------------------------------------------------- of a trace
std::string Block::words_of_wait(int thread) const {
    const observe::Unseen unseen;
    return "wait: " + waiting_for(thread);
}

void Block::note_arrival() {
    arrivals_[std::size_t(current_)] = trace::now(*this);
}

/// These lanes of a warp go on now; the bar begins where the first of them arrived.
void Block::trace_wait(int warp, unsigned lanes, const char* what, Site site) const {
    const std::uint64_t now = trace::now(*this);
    std::uint64_t begin = now;
    for (; lanes != 0; lanes &= lanes - 1)
        begin = std::min(
            begin, arrivals_[std::size_t(warp * kWarpSize + std::countr_zero(lanes))]);
    if (begin == now) return;  // nobody waited
    const observe::Unseen unseen;
    trace::lasted(*this,
                  {trace::Row::warp, warp, std::string("wait: ") + what, begin, site});
}

/// __syncthreads opens.
void Block::trace_barrier() const {
    const observe::Unseen unseen;
    trace::happened(*this, trace::Row::phases, 0,
                    "__syncthreads opens, line " + std::to_string(barrier_site_.line));
    for (int first = 0; first < count_; first += kWarpSize) {
        unsigned lanes = 0;
        for (int t = first; t < std::min(first + kWarpSize, count_); ++t)
            lanes |= unsigned(states_[t] == State::barrier) << (t - first);
        trace_wait(first / kWarpSize, lanes, "__syncthreads", barrier_site_);
    }
}

}  // namespace cuda_on_cpu
