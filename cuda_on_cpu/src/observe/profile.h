/// @file
/// All that is kept of what was seen: per kernel, per launch and per instruction.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "block.h"
#include "observe/lines.h"
#include "observe/memory.h"
#include "observe/races.h"

namespace cuda_on_cpu::observe {

/// An instruction that touches memory, or a line that stands for one.
struct Spot {
    std::uint64_t pc = 0;        ///< 0: the line is known already
    SourceLine place;            ///< for those without a pc
    Allocation* last = nullptr;  ///< the one that it touched last
};

/// Spots by number, which is dense.
class SpotTable {
  public:
    std::uint32_t of(std::uint64_t pc) {
        if (pc >> 63 != 0) return std::uint32_t(pc);  // pc_of() a site
        const Recent& recent = recent_[recent_index(pc)];
        return recent.pc == pc ? recent.spot : look_up(pc);
    }
    std::uint32_t of(Site site);
    /// What stands for a site in a Record.
    std::uint64_t pc_of(Site site);
    Spot& operator[](std::uint32_t spot) { return spots_[spot]; }
    SourceLine line(std::uint32_t spot) const;
    /// The allocation is about to go.
    void forget(const Allocation* allocation);

  private:
    static constexpr std::size_t kRecent = 4096;
    struct Recent {
        std::uint64_t pc = 0;
        std::uint32_t spot = 0;
    };
    static std::size_t recent_index(std::uint64_t pc) {
        return (pc ^ pc >> 12) % kRecent;
    }
    std::uint32_t look_up(std::uint64_t pc);

    std::vector<Spot> spots_;
    std::unordered_map<std::uint64_t, std::uint32_t> by_pc_;
    std::map<std::pair<std::string, int>, std::uint32_t> by_site_;
    std::vector<Recent> recent_ = std::vector<Recent>(kRecent);
};

struct KernelProfile {
    std::string name;
    std::uint64_t launches = 0;
    Counters total;
    std::vector<Counters> by_spot;  ///< index: Spot's number
    std::map<std::uint32_t, Sample> samples;  ///< by Spot's number

    Counters& at(std::uint32_t spot) {
        if (spot >= by_spot.size()) by_spot.resize(spot + 1);
        return by_spot[spot];
    }
};

/// A launch while it runs on the calling CPU thread.
struct RunningLaunch {
    KernelProfile* kernel = nullptr;  ///< null: not observed
    unsigned threads = 0;             ///< of a block
    std::size_t smem = 0;             ///< of a block
    Operation operation = 0;
    Counters counters;
};
extern thread_local RunningLaunch running_launch;

/// Everything, for all CPU threads; hold `mutex`.
struct Profile {
    std::mutex mutex;
    bool is_on = false;
    Options options;
    SpotTable spots;
    MemoryTable memory;
    RaceMemory races;
    std::vector<std::unique_ptr<KernelProfile>> kernels;
    std::vector<LaunchReport> launches;
    std::vector<Finding> findings;
    std::uint64_t host_waits = 0;

    /// Where an instruction's address lies; null outside of all allocations.
    Allocation* allocation_at(std::uint32_t spot, std::uint64_t address) {
        Allocation*& last = spots[spot].last;
        if (last != nullptr && last->contains(address)) return last;
        Allocation* const found = memory.find(address);
        if (found != nullptr) last = found;
        return found;
    }

    /// Notes it, or counts it when this kind was found at this line with this partner.
    /// @param other  of races
    void find(Finding::Kind kind, const SourceLine& line, const SourceLine& other,
              const std::string& text);

  private:
    std::map<std::tuple<Finding::Kind, std::string, int, std::string>, std::size_t>
        found_;
    friend void start(const Options& options);
};
Profile& profile();

}  // namespace cuda_on_cpu::observe
