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
#include "observe/events.h"

namespace cuda_on_cpu {

struct Queue;    ///< of one stream
struct Capture;  ///< see capture.h

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

/// A piece of work, done at its place in the order of the device. It tells its error by
/// set_error(), too.
using Work = std::function<cudaError_t(observe::Ticket)>;

/// True while calls queue their work: in held mode, and until all that it left is done.
bool holds_work();

/// Queues work. Before it in other streams: `after`, and what the legacy default stream
/// and the blocking ones wait for each other. Says what earlier work failed with.
cudaError_t enqueue(cudaStream_t stream, Work work, observe::Ticket place,
                    Ticket* ticket = nullptr, const Ticket& after = {});

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

/// It exists, or is null, the default stream; and no capture forbids its use.
cudaError_t check_stream(const char* function, cudaStream_t stream);

/// Does the work, now or once it is demanded; or has it captured.
cudaError_t submit(const char* function, cudaStream_t stream, Work work);

/// The same in a stream that is not captured, and the host waits until it is done.
cudaError_t submit_and_wait(const char* function, cudaStream_t stream, Work work);

// What streams are made and ended with
std::shared_ptr<Queue> make_queue(bool blocking);
/// What is in it still ends, once it is demanded.
void leave_queue(const std::shared_ptr<Queue>& queue);

/// Of a captured stream: by whom, and which lane of the graph is its.
struct Captured {
    std::shared_ptr<Capture> by;
    int lane = 0;
};

}  // namespace cuda_on_cpu

struct CUstream_st {
    std::shared_ptr<cuda_on_cpu::Queue> queue;
    bool blocking = true;  // it and the legacy default stream wait for each other
    cuda_on_cpu::Captured captured = {};
};
