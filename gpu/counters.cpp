#include "gpu/counters.h"

#include <atomic>

namespace moe::gpu {
namespace {

std::atomic<std::int64_t> launches{0}, host_waits{0}, bytes{0}, peak_bytes{0};

}  // namespace

Counters counters() {
    return {launches, host_waits, bytes, peak_bytes};
}

void reset_peak() {
    peak_bytes = bytes.load();
}

void count_launch() {
    ++launches;
}

void count_host_wait() {
    ++host_waits;
}

void count_bytes(std::int64_t change) {
    const std::int64_t now = bytes += change;
    std::int64_t highest = peak_bytes;
    while (now > highest && !peak_bytes.compare_exchange_weak(highest, now)) {
    }
}

}  // namespace moe::gpu
