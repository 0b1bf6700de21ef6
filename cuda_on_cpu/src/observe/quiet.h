/// @file
/// Most reads of shared memory change nothing of what is known about its bytes, and are
/// no race: many threads read what a barrier ago was written. These are told by a few
/// comparisons, before anything is looked up.
#pragma once

#include "observe/record.h"
#include "observe/shadow.h"

namespace cuda_on_cpu::observe {

/// Reads by one thread, which knows what the barriers of its block say and no more.
class QuietReads {
  public:
    /// @param span  the block's; 0: no read is quiet
    QuietReads(std::uint32_t span, int thread) : span_(span), thread_(unsigned(thread)) {}

    bool has(const Record& record, const Shadow& shadow, std::size_t offset) const {
        if (record.kind() != Kind::read || span_ == 0) return false;
        const auto cells = shadow.whole_cells(offset, record.size());
        if (cells.empty() || !shadow.is_written(offset, record.size())) return false;
        for (const Cell& cell : cells)
            if (!stays(cell)) return false;
        return true;
    }

  private:
    /// Two readers since the barrier are kept already, and this one would replace
    /// neither: see RaceFinder::check() and keep().
    bool stays(const Cell& cell) const {
        const auto& [first, second] = cell.others;
        if (first.span != span_ || second.span != span_) return false;
        if (((first.who | second.who) & Stamp::kWrites) != 0) return false;
        const unsigned one = unsigned(first.thread()), other = unsigned(second.thread());
        if (one == thread_ || other == thread_) return false;
        if (one / 32 == other / 32 && one / 32 != thread_ / 32) return false;
        return cell.write.span != span_ || unsigned(cell.write.thread()) == thread_;
    }

    std::uint32_t span_;
    unsigned thread_;
};

}  // namespace cuda_on_cpu::observe
