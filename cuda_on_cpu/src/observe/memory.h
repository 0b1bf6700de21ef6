/// @file
/// What memory an address belongs to, and which of its sectors a launch has touched.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "observe/events.h"
#include "observe/shadow.h"

namespace cuda_on_cpu::observe {

inline constexpr std::uint64_t kSector = 32;

/// Sectors of an allocation that a launch has touched, each counted once.
class SectorSet {
  public:
    void insert(std::uint64_t sector) {
        std::uint64_t& word = words_[sector / 64];
        const std::uint64_t bit = std::uint64_t{1} << sector % 64;
        count_ += !(word & bit);
        word |= bit;
    }
    void clear(std::size_t sectors) {
        words_.assign(sectors / 64 + 1, 0);
        count_ = 0;
    }
    std::uint64_t count() const { return count_; }

  private:
    std::vector<std::uint64_t> words_;
    std::uint64_t count_ = 0;
};

/// Device memory from one cudaMalloc.
struct Allocation {
    std::uint64_t base = 0;
    std::size_t bytes = 0;
    std::uint64_t number = 0;  ///< the how manieth of the program; 0: the host's
    bool is_touched = false;   ///< by the launch that runs
    SectorSet read, written;

    /// Who touched it. Made when first asked for: memory that is older than start()
    /// counts as written.
    Shadow& shadow() {
        if (!shadow_) shadow_ = std::make_unique<Shadow>(bytes, true);
        return *shadow_;
    }
    bool has_shadow() const { return shadow_ != nullptr; }
    void start_shadow(bool is_written) {
        shadow_ = std::make_unique<Shadow>(bytes, is_written);
    }
    void drop_shadow() { shadow_.reset(); }

    bool contains(std::uint64_t address) const { return address - base < bytes; }
    /// "the 3rd device allocation, of 4096 bytes"
    std::string name() const;

  private:
    std::unique_ptr<Shadow> shadow_;
};

class MemoryTable {
  public:
    Allocation& add(std::uint64_t base, std::size_t bytes, bool on_device);
    void remove(std::uint64_t base);
    /// Null for an address in none.
    Allocation* find(std::uint64_t address);
    /// "4 bytes past the end of the 3rd device allocation, of 4096 bytes", or "in no
    /// device allocation".
    std::string describe(std::uint64_t address) const;

    /// A launch counts afresh what it touches.
    void touch(Allocation& allocation);
    /// Distinct sectors read and written since the last call.
    std::pair<std::uint64_t, std::uint64_t> take_touched();

    std::uint64_t peak_bytes() const { return peak_; }
    std::uint64_t allocations() const { return made_ - made_before_; }
    void start();

  private:
    std::map<std::uint64_t, Allocation> by_base_;
    std::vector<Allocation*> touched_;
    std::uint64_t made_ = 0, made_before_ = 0, bytes_ = 0, peak_ = 0;
};

/// True for the program's own code and data, of which constant memory is a part.
bool is_program_data(std::uint64_t address);

}  // namespace cuda_on_cpu::observe
