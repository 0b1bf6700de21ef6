/// @file
/// Which work on the device is done before which: streams, events and the host's waits,
/// as CUDA defines them. Source: CUDA Runtime API, "Stream synchronization behavior".
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda_on_cpu/runtime_types.h"

namespace cuda_on_cpu::observe {

/// Of each stream, by number, how much of its work is known to be done.
class StreamClock {
  public:
    std::uint32_t operator[](std::size_t stream) const {
        return stream < done_.size() ? done_[stream] : 0;
    }
    void set(std::size_t stream, std::uint32_t done) {
        if (stream >= done_.size()) done_.resize(stream + 1);
        done_[stream] = done;
    }
    void join(const StreamClock& other) {
        if (other.done_.size() > done_.size()) done_.resize(other.done_.size());
        for (std::size_t i = 0; i < other.done_.size(); ++i)
            done_[i] = std::max(done_[i], other.done_[i]);
    }

  private:
    std::vector<std::uint32_t> done_;
};

/// A launch, a copy or a fill: its number. 0 is none.
using Operation = std::uint32_t;

class StreamOrder {
  public:
    void stream_made(cudaStream_t stream, bool blocking);
    /// Its place after all that the stream has, and after what the host has waited for.
    Operation enqueue(cudaStream_t stream);
    void event_recorded(cudaEvent_t event, cudaStream_t stream);
    void stream_waits(cudaStream_t stream, cudaEvent_t event);
    void host_waits_for_stream(cudaStream_t stream);
    void host_waits_for_event(cudaEvent_t event);
    void host_waits_for_device();
    void host_waits_for_operation(Operation operation) {
        host_.join(operations_[operation].clock);
    }

    /// What `from` has released, `to` has seen while both ran, as kernels of two ranks do:
    /// all that was before the first is before what comes after the second.
    void hand_over(Operation from, Operation to);

    /// True when the later one starts after the earlier one is done.
    bool is_before(Operation earlier, Operation later) const {
        const Entry &first = operations_[earlier], &second = operations_[later];
        return second.clock[first.stream] >= first.number;
    }
    /// "the default stream", "stream 2"
    std::string stream_of(Operation operation) const;

  private:
    struct Stream {
        std::uint32_t number = 0, work = 0;
        bool blocking = true, is_default = false;
        StreamClock clock;
    };
    struct Entry {
        std::uint32_t stream, number;
        bool is_default;
        StreamClock clock;
    };
    // Each host thread stands for a rank, with a default stream of its own
    using Key = std::pair<std::thread::id, cudaStream_t>;

    Stream& find(cudaStream_t stream);
    /// The stream with all that its next work waits for.
    Stream& advance(cudaStream_t stream);

    std::map<Key, Stream> streams_;
    std::map<cudaEvent_t, StreamClock> events_;
    StreamClock host_;
    std::uint32_t made_ = 0;
    std::vector<Entry> operations_ = std::vector<Entry>(1);
};

}  // namespace cuda_on_cpu::observe
