/// @file
/// What a CUDA thread knows to be done, of its own block's threads and of others'. A
/// vector clock: Lamport, "Time, Clocks, and the Ordering of Events in a Distributed
/// System", 1978; kept as small as in Flanagan and Freund, "FastTrack", 2009.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace cuda_on_cpu::observe {

/// Of one block: all before its `phase`th barrier, and in that phase of each thread all
/// up to an epoch (0: nothing).
struct BlockClock {
    std::uint32_t phase = 0;
    std::vector<std::uint32_t> epochs;

    bool knows(std::uint32_t other_phase, int thread, std::uint32_t epoch) const {
        return other_phase < phase ||
               (other_phase == phase && std::size_t(thread) < epochs.size() &&
                epochs[thread] >= epoch);
    }
    void join(const BlockClock& other) {
        if (other.phase < phase) return;
        if (other.phase > phase) {
            *this = other;
            return;
        }
        if (epochs.size() < other.epochs.size()) epochs.resize(other.epochs.size());
        for (std::size_t i = 0; i < other.epochs.size(); ++i)
            epochs[i] = std::max(epochs[i], other.epochs[i]);
    }
};

/// By block, numbered over all launches.
using Clock = std::map<std::uint32_t, BlockClock>;

inline void join(Clock& clock, const Clock& other) {
    for (const auto& [block, known] : other) clock[block].join(known);
}

/// Threads that met know the same, and share it. Null: nothing beyond their barriers.
using SharedClock = std::shared_ptr<const Clock>;

}  // namespace cuda_on_cpu::observe
