/// @file
/// What the headers with CUDA's names ask of the executor, and what a program may tell
/// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_cpu {

// ------------------------------------------------------------------ for programs, tests
/// In which order the threads of a block take turns, and the blocks of a grid run.
struct Schedule {
    enum class Policy { forward, reverse, random, priority };
    Policy policy = Policy::forward;
    std::uint64_t seed = 0;
};

/// Reads "forward", "reverse", "random:7" or "priority:7". False for anything else.
bool parse_schedule(const std::string& text, Schedule& schedule);
std::string to_string(const Schedule& schedule);

/// When asynchronous instructions do their work: where they stand, or at the last moment
/// that CUDA permits: what was stored is read, and products are formed, at the wait;
/// loads arrive when no thread can go on without them, in an order drawn from `seed`.
struct Asynchrony {
    bool deferred = false;
    std::uint64_t seed = 0;
};

/// Reads "eager", "deferred" or "deferred:7". False for anything else.
bool parse_asynchrony(const std::string& text, Asynchrony& asynchrony);
std::string to_string(const Asynchrony& asynchrony);

/// How tensor cores add up: hopper/accumulation.h. The default adds one product after the
/// other in fp32.
struct Accumulation {
    int products = 1;        ///< that are added to the sum at once
    int extra_bits = 0;      ///< kept below fp32's 24 while they are
    bool truncates = false;  ///< the result, instead of rounding it to nearest
};

/// When the work of a stream is done: at the call that asks for it, or only when
/// something demands it. Held work shows where a wait between streams is missing; the
/// schedule then says which stream goes first when several may.
enum class Streams { eager, held };

/// Reads "eager" or "held". False for anything else.
bool parse_streams(const std::string& text, Streams& streams);

/// How kernels run; first filled from the environment: CUDA_ON_CPU_SCHEDULE,
/// CUDA_ON_CPU_ASYNC, CUDA_ON_CPU_STREAMS, CUDA_ON_CPU_THREADS (CPU threads for blocks),
/// CUDA_ON_CPU_SMS (multiprocessors that the emulated device reports). Change it only
/// while no kernel runs and no stream holds work.
struct Options {
    Schedule schedule;
    Asynchrony asynchrony;
    Streams streams = Streams::eager;
    Accumulation accumulation;
    int threads = 1;
    int multiprocessors = 4;
};
Options& options();

/// From now on launches write a timeline to this file, for Perfetto; "" ends it. At first
/// CUDA_ON_CPU_TRACE names the file. False when it cannot be written. Not while a kernel
/// runs.
bool trace_to(const std::string& file);

/// The name that messages give the next kernel launched by this thread.
void name_next_launch(const char* name);

/// Switches from CUDA thread to CUDA thread so far, on all CPU threads; for benchmarks.
std::uint64_t switch_count();

/// Atomic functions that kernels have called so far, on all CPU threads. Threads of a
/// block take turns only where they wait, so a plain += where an atomicAdd belongs often
/// gives the right sum here: a test counts the atomics instead.
std::uint64_t atomic_count();

// ---------------------------------------------------------------------- for the headers
/// Atomic functions on this CPU thread, in the launch under way. The observed build sees
/// them by itself.
inline constinit thread_local std::uint64_t atomics_here = 0;
inline void count_atomic() {
#ifndef CUDA_ON_CPU_OBSERVE
    ++atomics_here;
#endif
}

/// A place in a kernel's source, for messages.
struct Site {
    const char* file = nullptr;
    int line = 0;
    bool operator==(const Site& other) const {
        return line == other.line &&
               (file == other.file || __builtin_strcmp(file, other.file) == 0);
    }
};

/// The block's shared memory, aligned to 1024 bytes. A fault when the launch gave less.
void* shared_arena(std::size_t bytes, Site site = {__builtin_FILE(), __builtin_LINE()});

/// What __syncthreads and its variants agree on.
enum class Vote { none, count, all, any };
int block_barrier(Vote vote, int predicate, Site site);

enum class WarpOp : std::uint8_t {
    sync,
    shfl,
    shfl_up,
    shfl_down,
    shfl_xor,
    all,
    any,
    ballot,
    match_any,
    match_all,
    add,
    min_signed,
    max_signed,
    min_unsigned,
    max_unsigned,
    bit_and,
    bit_or,
    bit_xor,
    collective  ///< an instruction of hopper.h
};

/// Waits for the lanes of `mask`, then gives this lane's result.
/// @param value  the lane's operand, as bits
/// @param argument, width  shuffles: lane, delta or lane mask, and the segment width
std::uint64_t warp_op(WarpOp op, unsigned mask, std::uint64_t value, int argument,
                      int width, Site site);

/// Lets another thread of the block run; for loops that wait for one.
void yield_thread();

/// What the global timer reads: a steady clock.
std::uint64_t nanoseconds();

/// Ends the launch with an error that names kernel, block, thread and `site`.
[[noreturn]] void trap(const char* what, Site site);

}  // namespace cuda_on_cpu
