/// @file
/// In which order a block's threads take turns.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_on_cpu/executor.h"

namespace cuda_on_cpu {

/// A small generator of 64-bit numbers: the same seed gives the same schedule anywhere.
/// Source: Vigna, splitmix64.
class SplitMix {
  public:
    explicit SplitMix(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next();
    std::uint64_t below(std::uint64_t bound) { return next() % bound; }

  private:
    std::uint64_t state_;
};

/// Turns of `count` threads, of which some may run and some wait.
class Turns {
  public:
    /// @param salt  makes blocks of one launch differ
    void start(const Schedule& schedule, int count, std::uint64_t salt);

    /// The next thread with may_run[thread], or -1 when there is none.
    int next(const std::uint8_t* may_run) {
        if (policy_ == Schedule::Policy::priority) return next_by_priority(may_run);
        for (int searched = 0; searched < 2; ++searched) {
            while (++position_ < count_)
                if (may_run[order_[position_]]) return order_[position_];
            start_round();
        }
        // A fresh permutation may have put the only candidate before the old position.
        while (++position_ < count_)
            if (may_run[order_[position_]]) return order_[position_];
        return -1;
    }

  private:
    int next_by_priority(const std::uint8_t* may_run);
    void start_round();
    void shuffle();

    Schedule::Policy policy_ = Schedule::Policy::forward;
    SplitMix random_{0};
    int count_ = 0, position_ = -1;
    std::vector<int> order_;  // thread at each position
};

/// Position `index` of the order in which `count` blocks run.
std::int64_t block_at(const Schedule& schedule, std::int64_t index, std::int64_t count);

}  // namespace cuda_on_cpu
