#include "gpu/counters.h"

#include <atomic>

#include "gpu/device_log.h"
#include "gpu/thread_counters.h"

namespace moe::gpu {
namespace {

std::atomic<std::int64_t> launches{0}, host_waits{0}, bytes{0}, peak_bytes{0};

thread_local ThreadCounters of_thread;
thread_local int exchanges = 0;  // ExchangeScopes that live

void add_host_wait() {
    ++host_waits;
    ++(exchanges > 0 ? of_thread.exchange_waits : of_thread.host_waits);
}

}  // namespace

Counters counters() {
    return {launches, host_waits, bytes, peak_bytes};
}

void reset_peak() {
    peak_bytes = bytes.load();
}

ThreadCounters thread_counters() {
    return of_thread;
}

ExchangeScope::ExchangeScope() {
    ++exchanges;
}

ExchangeScope::~ExchangeScope() {
    --exchanges;
}

void count_launch(const char* kernel, const void* stream) {
    ++launches;
    ++(exchanges > 0 ? of_thread.exchange_launches : of_thread.launches);
    if (exchanges == 0) log_launch(kernel, stream);
}

void count_host_wait() {
    add_host_wait();
    if (exchanges == 0) log_host_wait();
}

void count_host_wait(const void* stream) {
    add_host_wait();
    if (exchanges == 0) log_host_wait(stream);
}

void count_bytes(std::int64_t change) {
    const std::int64_t now = bytes += change;
    std::int64_t highest = peak_bytes;
    while (now > highest && !peak_bytes.compare_exchange_weak(highest, now)) {
    }
}

}  // namespace moe::gpu
