/// @file
/// For each byte of memory, who touched it last: the last write, and up to two accesses
/// since that have no order between them; and whether anybody has written it at all.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace cuda_on_cpu::observe {

/// Who, when and where, of one access.
struct Stamp {
    std::uint32_t span = 0;   ///< a block between two of its barriers; 0: nobody
    std::uint32_t who = 0;    ///< thread in 10 bits, atomic in 1, writes in 1, spot in 20
    std::uint32_t epoch = 0;  ///< the thread's, counts its releases

    static constexpr std::uint32_t kWrites = 1 << 11;

    int thread() const { return int(who & 1023); }
    bool is_atomic() const { return who >> 10 & 1; }
    bool writes() const { return who & kWrites; }
    std::uint32_t spot() const { return who >> 12; }
    static std::uint32_t pack(int thread, bool atomic, bool writes, std::uint32_t spot) {
        return std::uint32_t(thread) | std::uint32_t(atomic) << 10 |
               std::uint32_t(writes) << 11 | spot << 12;
    }
};

/// Of one granule. `others` are reads and atomics since the last plain write.
struct Cell {
    Stamp write;
    std::array<Stamp, 2> others;
};

/// The shadow of one stretch of memory. Granules are 4 bytes, and in a KiB where
/// something smaller was touched, 2 or 1: as exact as it must be, and no larger.
class Shadow {
  public:
    Shadow(std::size_t bytes, bool initialised)
        : chunks_((bytes + kChunk - 1) / kChunk),
          written_((bytes + 63) / 64, initialised ? ~std::uint64_t{0} : 0) {}

    /// Calls visit(cell) for the cells of [offset, offset + bytes).
    template <typename Visit>
    void visit(std::size_t offset, std::size_t bytes, Visit visit) {
        while (bytes > 0) {
            Chunk& chunk = chunks_[offset / kChunk];
            const std::size_t at = offset % kChunk;
            const std::size_t here = bytes < kChunk - at ? bytes : kChunk - at;
            prepare(chunk, at | here);
            Cell* cell = chunk.cells.get() + (at >> chunk.shift);
            for (std::size_t n = here >> chunk.shift; n > 0; --n) visit(*cell++);
            offset += here;
            bytes -= here;
        }
    }
    /// The same for cells that somebody has touched, where there are any.
    template <typename Visit>
    void visit_touched(std::size_t offset, std::size_t bytes, Visit visit_cell) {
        while (bytes > 0) {
            const std::size_t at = offset % kChunk;
            const std::size_t here = bytes < kChunk - at ? bytes : kChunk - at;
            if (chunks_[offset / kChunk].cells) visit(offset, here, visit_cell);
            offset += here;
            bytes -= here;
        }
    }

    /// The cells of exactly these bytes, where they are in one KiB and need no finer
    /// ones; else none.
    std::span<const Cell> whole_cells(std::size_t offset, std::size_t bytes) const {
        const Chunk& chunk = chunks_[offset / kChunk];
        const std::size_t at = offset % kChunk;
        const bool fits = ((at | bytes) & ((std::size_t{1} << chunk.shift) - 1)) == 0;
        if (!chunk.cells || !fits || at + bytes > kChunk) return {};
        return {chunk.cells.get() + (at >> chunk.shift), bytes >> chunk.shift};
    }

    /// At most 16 bytes.
    bool is_written(std::size_t offset, std::size_t bytes) const {
        const std::size_t first = offset % 64;
        if (first + bytes > 64)
            return is_written(offset, 64 - first) &&
                   is_written(offset + 64 - first, first + bytes - 64);
        const std::uint64_t bits = (std::uint64_t{1} << bytes) - 1;
        return (written_[offset / 64] >> first & bits) == bits;
    }
    void set_written(std::size_t offset, std::size_t bytes, bool value = true);
    /// Byte by byte what the other knows of its own.
    void copy_written(std::size_t offset, const Shadow& from, std::size_t from_offset,
                      std::size_t bytes);

  private:
    static constexpr std::size_t kChunk = 1024;
    struct Chunk {
        std::unique_ptr<Cell[]> cells;
        std::uint8_t shift = 2;
    };
    /// Makes the chunk's granules fine enough for these offsets and sizes.
    void prepare(Chunk& chunk, std::size_t multiple) {
        if (chunk.cells && !(multiple & ((std::size_t{1} << chunk.shift) - 1))) return;
        refine(chunk, multiple);
    }
    void refine(Chunk& chunk, std::size_t multiple);

    std::vector<Chunk> chunks_;
    std::vector<std::uint64_t> written_;  // a bit for each byte
};

}  // namespace cuda_on_cpu::observe
