/// @file
/// Streams that hold work back. With CUDA_ON_CPU_STREAMS=held a call only queues its
/// work, and the CPU thread that demands a result runs what this result depends on, and
/// nothing else: the last moment that CUDA permits. A wait that is missing then shows as
/// a value that is not there yet.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "cuda_on_cpu/runtime_api.h"

namespace cuda_on_cpu {

struct Queue;  ///< of one stream

/// The place of a piece of work in its stream; without a queue: done already.
struct Ticket {
    std::shared_ptr<Queue> queue;
    std::uint64_t number = 0;
};

/// What an event remembers of its last record.
struct Recording {
    Ticket ticket;
    std::chrono::steady_clock::time_point time;  ///< when the stream got there
};

/// A piece of work. It tells its error by set_error(), too.
using Work = std::function<cudaError_t()>;

/// True while calls queue their work: in held mode, and until all that it left is done.
bool holds_work();

/// Queues work. Before it in other streams: `after`, and what the legacy default stream
/// and the blocking ones wait for each other. Says what earlier work failed with.
cudaError_t enqueue(cudaStream_t stream, Work work, Ticket* ticket = nullptr,
                    const Ticket& after = {});

/// Runs what `ticket` depends on, and that itself.
cudaError_t demand(const Ticket& ticket);
/// Runs all of a stream; of the default stream: the blocking ones', too.
cudaError_t demand_stream(cudaStream_t stream);
/// Runs all of all streams. Which goes first, the schedule says: forward the oldest, the
/// default stream before all; reverse the youngest; random, priority: they take turns.
cudaError_t demand_all();

/// False while the work is held back; then its stream goes on by one piece, so that who
/// asks in a loop comes to an end.
bool is_done(const Ticket& ticket);
bool is_done(cudaStream_t stream);

/// A stream may be null, the default stream.
cudaError_t check_stream(const char* function, cudaStream_t stream);

/// Does the work, now or once it is demanded.
template <typename Doing>
cudaError_t submit(const char* function, cudaStream_t stream, Doing&& work) {
    if (stream != nullptr)
        if (const cudaError_t error = check_stream(function, stream)) return error;
    return holds_work() ? enqueue(stream, std::forward<Doing>(work)) : work();
}

/// The same, and the host waits until it is done.
template <typename Doing>
cudaError_t submit_and_wait(const char* function, cudaStream_t stream, Doing&& work) {
    if (stream != nullptr)
        if (const cudaError_t error = check_stream(function, stream)) return error;
    if (!holds_work()) return work();
    Ticket ticket;
    if (const cudaError_t error = enqueue(stream, std::forward<Doing>(work), &ticket))
        return error;
    return demand(ticket);
}

// What streams are made and ended with
std::shared_ptr<Queue> make_queue(bool blocking);
/// What is in it still ends, once it is demanded.
void leave_queue(const std::shared_ptr<Queue>& queue);

}  // namespace cuda_on_cpu

struct CUstream_st {
    std::shared_ptr<cuda_on_cpu::Queue> queue;
};
