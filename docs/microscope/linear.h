/// @file
/// One matrix product in five steps, from the obvious kernel to Hopper's: the lesson of
/// docs/microscope.md.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"
#include "core/tensor.h"

namespace moe::microscope {

/// What a version has that the one before it lacks.
enum class Version {
    uncoalesced,  ///< one thread per result
    coalesced,    ///< one warp per result
    conflicting,  ///< one block per tile of results; its operands in shared memory
    padded,       ///< the same, and a column's elements lie in different banks
    pipelined     ///< loads by TMA, products by wgmma, each waiting for the other
};
inline constexpr std::array kVersions = {Version::uncoalesced, Version::coalesced,
                                         Version::conflicting, Version::padded,
                                         Version::pipelined};

/// "uncoalesced"
const char* to_string(Version version);

/// Of x and W: fp32; bf16 for `pipelined`.
DType operand_dtype(Version version);

/// y = x Wᵀ, all sums in fp32. Returns when the launch is queued.
/// @param x       (rows, in) on the device, in operand_dtype()
/// @param weight  (out, in), the same
/// @return        y (rows, out), fp32
///
/// InputError when `pipelined` gets an `in` that is no multiple of 8 or an `out` that is
/// none of 4: TMA wants rows that begin at multiples of 16 bytes.
Tensor linear(Version version, const Tensor& x, const Tensor& weight);

/// The last of them, in a file of its own.
Tensor linear_pipelined(const Tensor& x, const Tensor& weight);

}  // namespace moe::microscope
