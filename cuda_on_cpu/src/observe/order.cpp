// order.cpp: streams, events and waits, as an order of the work on the device.

#include "observe/order.h"

namespace cuda_on_cpu::observe {

StreamOrder::Stream& StreamOrder::find(cudaStream_t stream) {
    const bool is_default = stream == nullptr;
    const Key key{is_default ? std::this_thread::get_id() : std::thread::id(), stream};
    const auto [found, is_new] = streams_.try_emplace(key);
    if (is_new) {
        found->second.number = made_++;
        found->second.is_default = is_default;
    }
    return found->second;
}

void StreamOrder::stream_made(cudaStream_t stream, bool blocking) {
    streams_.erase({std::thread::id(), stream});  // an old one's address
    find(stream).blocking = blocking;
}

// TUTORIAL: the default stream and every ordinary stream wait for each other: work of the
// default stream starts when all ordinary streams are done, and their later work when it
// is done. Streams made with cudaStreamNonBlocking stand apart.
StreamOrder::Stream& StreamOrder::advance(cudaStream_t handle) {
    Stream& stream = find(handle);
    stream.clock.join(host_);
    if (stream.blocking)
        for (const auto& [key, other] : streams_)
            if (other.blocking && (stream.is_default || other.is_default) &&
                !(stream.is_default && other.is_default))
                stream.clock.join(other.clock);
    return stream;
}

Operation StreamOrder::enqueue(cudaStream_t handle) {
    Stream& stream = advance(handle);
    stream.clock.set(stream.number, ++stream.work);
    operations_.push_back({stream.number, stream.work, stream.is_default, stream.clock});
    return Operation(operations_.size() - 1);
}

void StreamOrder::event_recorded(cudaEvent_t event, cudaStream_t stream) {
    events_[event] = advance(stream).clock;
}
void StreamOrder::stream_waits(cudaStream_t stream, cudaEvent_t event) {
    find(stream).clock.join(events_[event]);
}
void StreamOrder::host_waits_for_stream(cudaStream_t stream) {
    host_.join(advance(stream).clock);
}
void StreamOrder::host_waits_for_event(cudaEvent_t event) {
    host_.join(events_[event]);
}
void StreamOrder::host_waits_for_device() {
    for (const auto& [key, stream] : streams_) host_.join(stream.clock);
}

void StreamOrder::hand_over(Operation from, Operation to) {
    StreamClock before = operations_[from].clock;
    before.set(operations_[from].stream, operations_[from].number - 1);
    operations_[to].clock.join(before);
    for (auto& [key, stream] : streams_)
        if (stream.number == operations_[to].stream) stream.clock.join(before);
}

std::string StreamOrder::stream_of(Operation operation) const {
    const Entry& entry = operations_[operation];
    return entry.is_default ? "the default stream"
                            : "stream " + std::to_string(entry.stream);
}

}  // namespace cuda_on_cpu::observe
