/// @file
/// What kernels did to memory, counted as a GPU's profiler counts it. Only in builds with
/// MOE_OBSERVE, where the compiler calls the executor at every load and store; elsewhere
/// these functions do nothing. See docs/observe.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_on_cpu/observe_instructions.h"

namespace cuda_on_cpu::observe {

// ------------------------------------------------------------------ for programs, tests
/// Warp instructions on global memory, and what they cost.
struct Requests {
    std::uint64_t requests = 0;
    std::uint64_t sectors = 0;        ///< of 32 bytes, touched
    std::uint64_t ideal_sectors = 0;  ///< that the same bytes would need, packed
};

/// Warp instructions on shared memory.
struct SharedRequests {
    std::uint64_t requests = 0;
    std::uint64_t wavefronts = 0;        ///< turns that the 32 banks needed
    std::uint64_t ideal_wavefronts = 0;  ///< without conflicts
    std::uint64_t most_ways = 0;         ///< of one request; 1: no conflict
};

/// Of a launch, of a kernel's launches together, or of one source line.
struct Counters {
    Requests loads, stores, atomics;
    SharedRequests shared;
    std::uint64_t atomic_degree = 0;    ///< most lanes on one address, one instruction
    std::uint64_t instructions = 0;     ///< warp instructions that touch memory
    std::uint64_t divergent = 0;        ///< those with lanes of the warp missing
    std::uint64_t barriers = 0;         ///< a warp's waits for its block
    std::uint64_t sectors_read = 0;     ///< distinct in a launch; 0 for a line
    std::uint64_t sectors_written = 0;  ///< the same
    std::uint64_t async_sectors = 0;    ///< of global memory, by asynchronous copies
    std::uint64_t async_bytes = 0;      ///< moved by them
    std::uint64_t mma_flops = 0;        ///< of tensor-core instructions

    /// What must cross HBM with a cold cache that holds everything.
    std::uint64_t compulsory_bytes() const {
        return 32 * (sectors_read + sectors_written);
    }
    /// What all requests ask for, before any cache.
    std::uint64_t requested_bytes() const {
        return 32 * (loads.sectors + stores.sectors + atomics.sectors + async_sectors);
    }
    Counters& operator+=(const Counters& other);
};

/// What one warp instruction touched.
struct Sample {
    enum class Access { load, store, atomic };
    Access access = Access::load;
    bool is_shared = false;
    unsigned bytes = 0;  ///< of each lane
    unsigned mask = 0;   ///< the lanes
    /// From the start of the allocation, or of the block's shared memory; by lane.
    std::array<std::uint64_t, 32> offsets{};

    bool operator==(const Sample&) const = default;
};

struct LineReport {
    std::string file;  ///< as the compiler was given it; the address where unknown
    int line = 0;
    Counters counters;
    std::vector<Sample> samples;  ///< of each of its instructions the first that ran
};
struct KernelReport {
    std::string name;
    std::uint64_t launches = 0;
    Counters total;
    std::vector<LineReport> lines;  ///< by file and line
};
struct LaunchReport {
    std::string kernel;
    Counters counters;
    unsigned threads = 0;  ///< of a block
    std::size_t smem = 0;  ///< bytes of shared memory of a block
};

/// Something wrong that was seen.
struct Finding {
    enum class Kind { out_of_bounds, race, uninitialised };
    Kind kind;
    std::string file;  ///< of the access that was wrong
    int line = 0;
    std::string other_file;  ///< races: of the other one, "" for a copy of the host's
    int other_line = 0;
    std::string text;         ///< one line that says it all
    std::uint64_t times = 1;  ///< how often at this place
};

struct Report {
    std::vector<KernelReport> kernels;  ///< in the order of their first launches
    std::vector<LaunchReport> launches;
    std::vector<Finding> findings;
    std::uint64_t host_waits = 0;   ///< for streams, events, the device; waiting copies
    std::uint64_t allocations = 0;  ///< of device memory
    std::uint64_t peak_bytes = 0;   ///< of device memory, at one time
};

struct Options {
    bool races = false;  ///< also look for races and reads of unwritten memory: slower
};

/// From now on launches are observed, afresh. Not while a kernel runs.
void start(const Options& options = {});
/// No longer.
void stop();
/// What was seen since start().
Report report();
/// The number of report().launches.
std::size_t launches_seen();

}  // namespace cuda_on_cpu::observe
