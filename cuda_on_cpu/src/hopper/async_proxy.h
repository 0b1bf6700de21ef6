/// @file
/// What the asynchronous proxy (TMA, bulk copies, wgmma) sees of a block's shared memory.
/// Rules: PTX ISA, "Proxies" and "membar, fence: fence.proxy.async".
///
/// TUTORIAL: on hardware these units reach shared memory by a way of their own. What a
/// thread has stored is certain to be seen there only after its fence.proxy.async. Plain
/// stores leave no trace here, so the executor keeps a second copy of shared memory, what
/// the proxy sees, brought up to date by each fence; an asynchronous read of a byte in
/// which the two differ is the missing fence.
#pragma once

#include <cstdint>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

/// How a tile's 16-byte pieces are permuted in shared memory; values as in a tensor map.
enum class Swizzle : std::uint8_t { none, bytes_32, bytes_64, bytes_128 };
const char* to_string(Swizzle swizzle);
/// Bytes after which the permutation repeats: 16, 32, 64, 128 times 8 rows.
constexpr std::uint32_t swizzle_span(Swizzle swizzle) {
    return 16u << int(swizzle);
}
/// Where the byte at `position` of shared memory lies: address bits 4 to 6 are XORed with
/// bits 7 to 9, or fewer of them.
constexpr std::uint32_t swizzled(std::uint32_t position, Swizzle swizzle) {
    const std::uint32_t mask = (1u << int(swizzle)) - 1;
    return position ^ ((position >> 7 & mask) << 4);
}

class AsyncProxy {
  public:
    void begin(const Block& block);
    /// fence.proxy.async: what was stored so far becomes visible. To find it takes a look
    /// at all of shared memory, and one look serves every thread that has come so far: so
    /// the others are let run first, who mostly come to their own fence.
    template <typename LetOthersRun>
    void fence(const LetOthersRun& let_others_run) {
        const std::uint64_t looks = looks_;
        let_others_run();
        if (looks_ == looks) look();
    }
    /// An asynchronous operation has written there; `swizzle` when it was a tensor's box.
    void wrote(std::size_t position, std::size_t bytes);
    void note_swizzle(std::size_t position, Swizzle swizzle) {
        swizzles_[position / kLine] = std::uint8_t(1 + int(swizzle));
    }
    /// An asynchronous operation reads there; a Fault when a fence is missing.
    void check_read(const char* what, std::size_t position, std::size_t bytes,
                    Site site) const;
    /// A Fault when what lies there, untouched, was loaded with another swizzle.
    void check_swizzle(const char* what, std::size_t position, Swizzle swizzle,
                       Site site) const;

  private:
    static constexpr std::size_t kLine = 128;
    void look();

    const Block* block_ = nullptr;
    std::size_t bytes_ = 0;
    std::uint64_t looks_ = 0;
    std::vector<std::byte> seen_;
    std::vector<std::uint8_t> swizzles_;  ///< of each line, plus 1; 0: not a tensor's
};

}  // namespace cuda_on_cpu
