/// @file
/// The 64-bit matrix descriptor of wgmma: where a tile lies in shared memory, and how.
/// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix: Shared Memory Matrix Layout".
#pragma once

#include <cstdint>

#include "hopper/async_proxy.h"

namespace cuda_on_cpu {

/// TUTORIAL: the unit is a core matrix, 8 rows of 16 bytes. Along the axis that is
/// contiguous in memory (K-major: the depth; MN-major: rows of A, columns of B) as many
/// 16-byte pieces stand side by side as the swizzle spans: 1, 2, 4 or 8. Two strides say
/// how the blocks of 8 rows follow each other, and the pieces beyond the span.
struct MatrixDescriptor {
    std::uint32_t start;            ///< bytes from the start of shared memory
    std::uint32_t leading, stride;  ///< bytes
    std::uint32_t base_offset;
    Swizzle swizzle;
    bool valid;  ///< no bit is set that means nothing

    explicit MatrixDescriptor(std::uint64_t bits)
        : start(std::uint32_t(bits & 0x3fff) << 4),
          leading(std::uint32_t(bits >> 16 & 0x3fff) << 4),
          stride(std::uint32_t(bits >> 32 & 0x3fff) << 4),
          base_offset(std::uint32_t(bits >> 49 & 7)),
          // Here 128 bytes is 1 and 32 bytes is 3, other than in a tensor map.
          swizzle(bits >> 62 == 0 ? Swizzle::none : Swizzle(4 - int(bits >> 62))),
          valid((bits & 0x3ff1'c000'c000'c000u) == 0) {}

    /// Where the 16 bytes lie that hold elements 8 `chunk` to 8 `chunk` + 7 along the
    /// contiguous axis, of line `line` along the other one; before the swizzle.
    /// @param major_k  the depth is the contiguous axis
    std::uint32_t piece(bool major_k, int line, int chunk) const {
        const int side = 1 << int(swizzle);  // pieces side by side
        const std::uint32_t inside = std::uint32_t(line % 8 * side + chunk % side) * 16;
        const auto beyond = std::uint32_t(chunk / side), block = std::uint32_t(line / 8);
        // Without a swizzle the two strides trade places in the MN-major form.
        if (!major_k && swizzle == Swizzle::none)
            return start + inside + beyond * stride + block * leading;
        return start + inside + beyond * leading + block * stride;
    }
};

}  // namespace cuda_on_cpu
