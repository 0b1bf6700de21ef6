/// @file
/// Which rung of the ladder a product takes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace moe::optimized {

/// Kernels of grouped_gemm.h, each rung with one idea more than the last.
enum class Rung {
    mma_sync = 1,   ///< cp.async and mma.sync: sm_80, any widths
    tma_wgmma = 2,  ///< TMA, mbarriers and wgmma: sm_90a, rows of a multiple of 16 bytes,
                    ///< which begin at such
    warp_specialized = 3,       ///< blocks that stay, warps that load: as the second
    scheduler_and_epilogue = 4  ///< pairs of blocks, an order for the cache, TMA stores
};
inline constexpr Rung kHighestRung = Rung::scheduler_and_epilogue;

/// "1_mma_sync", "2_tma_wgmma", "3_warp_specialized", "4_scheduler_and_epilogue".
std::string to_string(Rung rung);

/// The highest rung, or that of set_rung(), where the device and the widths allow it;
/// else the first. All rungs but the first want the same, and each has all products. The
/// CPU executor is a device of compute capability 9.0.
/// @param widths  elements in a row of each bf16 operand; and where operands and results
///                begin, see begin_of()
Rung chosen_rung(std::initializer_list<std::int64_t> widths);

/// For the whole process, from now on; nothing: the highest again. Tests and measurements
/// compare rungs by it.
void set_rung(std::optional<Rung> rung);

/// How the two consumer warpgroups of the fourth rung divide their work.
enum class Consumers {
    cooperative,  ///< halves of one tile of 128 x 256
    ping_pong  ///< tiles of 64 x 256 of their own: while one multiplies, the other stores
};

/// Ping-pong hides the storing of a tile behind the products of the next, and moves more
/// operands for it, so it is for what is soon multiplied: y and dx in bf16 where what is
/// summed over is less than this, FC2 where F is, and FC1's input gradient where 2F is.
/// Source: SonicMoE's choices for H100 change there; nothing here has been measured.
///
/// All others are cooperative. FC1 and the gradient through FC2 are summed over H, which
/// is not short. Weight gradients are summed over each expert's rows, which the host does
/// not know: a choice on the device would be two kernels in one, with the registers of
/// both.
inline constexpr std::int64_t kLongDepth = 1024;

/// By that rule, or what set_consumers() says. @param depth  what is summed over
Consumers chosen_consumers(std::int64_t depth);

/// As set_rung(). What does not know ping-pong stays as it is.
void set_consumers(std::optional<Consumers> consumers);

}  // namespace moe::optimized
