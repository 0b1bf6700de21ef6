/// @file
/// A timeline of launches for Perfetto or chrome://tracing: one process per block, one
/// row per warp, and rows for what goes on by itself. Format: Chrome's trace event JSON.
///
/// TUTORIAL: its clock counts the scheduler's steps, switches from thread to thread. It
/// shows who waits for whom, and what overlaps; it is never time.
#pragma once

#include <cstdint>
#include <string>

#include "block.h"

namespace cuda_on_cpu::trace {

/// True while a file is written. Blocks then run one after another.
bool is_on();

/// The present step of the block's cluster.
std::uint64_t now(const Block& block);

/// Rows of a block: its warps by number, then these, each with room for the warps.
enum class Row : int {
    warp = 0,
    loads = 1000,
    stores = 1001,
    copies = 1002,
    products = 2000,
    phases = 3000
};

/// Something that lasted.
struct Bar {
    Row row;
    int number;  ///< of the warp, or 0
    std::string what;
    std::uint64_t begin;
    Site site;
    std::string on = "";    ///< the mbarrier that it completes on, "+0x40"
    std::uint64_t end = 0;  ///< 0: until now
};
void lasted(const Block& block, const Bar& bar);
/// Something that happened now.
void happened(const Block& block, Row row, int number, const std::string& what);

void block_begins(const Block& block);
void cluster_ends(std::uint64_t steps);
void launch_ends();

}  // namespace cuda_on_cpu::trace
