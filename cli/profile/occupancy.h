/// @file
/// How many warps a multiprocessor holds at once: from what ptxas says that a kernel
/// takes, where .ci/cuda has asked it.
#pragma once

#include <map>
#include <string>

#include "cli/profile/layer_profile.h"

namespace moe::profile {

/// What a thread and a block take, apart from what a launch gives.
struct Resources {
    int registers = 0;      ///< of a thread
    std::int64_t smem = 0;  ///< bytes of static shared memory
};

/// By a kernel's name without its template arguments, for sm_90a; of several instances
/// the most. Lines that are none of a kernel are passed over.
/// @param table  the text of build/bundle/kernels.txt
std::map<std::string, Resources> read_kernel_table(const std::string& table);

/// Blocks on one multiprocessor of compute capability 9.0, and which limit that is.
/// Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
struct Occupancy {
    int blocks = 0;
    const char* limit = "";  ///< "registers", "shared memory", "threads" or "blocks"
    double share = 0.0;      ///< warps held over the 64 that there is room for
};
Occupancy occupancy_of(const Resources& resources, unsigned threads, std::size_t smem);

/// A line per kernel; nothing without a table.
void print_occupancy(const LayerProfile& profile, const std::string& component,
                     const std::map<std::string, Resources>& table);

}  // namespace moe::profile
