#include "observe/shadow.h"

namespace cuda_on_cpu::observe {

void Shadow::refine(Chunk& chunk, std::size_t multiple) {
    const unsigned before = chunk.shift;
    while (multiple & ((std::size_t{1} << chunk.shift) - 1)) --chunk.shift;
    auto finer = std::make_unique<Cell[]>(kChunk >> chunk.shift);
    if (chunk.cells)
        for (std::size_t i = 0; i < kChunk >> chunk.shift; ++i)
            finer[i] = chunk.cells[i >> (before - chunk.shift)];
    chunk.cells = std::move(finer);
}

void Shadow::set_written(std::size_t offset, std::size_t bytes, bool value) {
    const std::size_t end = offset + bytes;
    while (offset < end) {
        std::uint64_t& word = written_[offset / 64];
        const std::size_t first = offset % 64;
        const std::size_t count = end - offset < 64 - first ? end - offset : 64 - first;
        const std::uint64_t bits =
            (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << first;
        word = value ? word | bits : word & ~bits;
        offset += count;
    }
}

void Shadow::copy_written(std::size_t offset, const Shadow& from, std::size_t from_offset,
                          std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i)
        set_written(offset + i, 1, from.is_written(from_offset + i, 1));
}

}  // namespace cuda_on_cpu::observe
