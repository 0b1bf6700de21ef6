/// @file
/// What one rank asks of the device. A rank is a thread or a process, and all that it
/// launches it launches from one thread: so its counts are that thread's.
#pragma once

#include <cstdint>

namespace moe::gpu {

/// Launches and waits as Counters has them, of the calling thread.
struct ThreadCounters {
    std::int64_t launches = 0;
    std::int64_t host_waits = 0;
    /// Those of the collectives: how a back-end moves bytes between its ranks. They are
    /// not among the ones above.
    std::int64_t exchange_launches = 0;
    std::int64_t exchange_waits = 0;

    ThreadCounters operator-(const ThreadCounters& earlier) const {
        return {launches - earlier.launches, host_waits - earlier.host_waits,
                exchange_launches - earlier.exchange_launches,
                exchange_waits - earlier.exchange_waits};
    }
    bool operator==(const ThreadCounters&) const = default;
};

/// Since the thread began.
ThreadCounters thread_counters();

/// While it lives, this thread is in a collective. Scopes nest.
class ExchangeScope {
  public:
    ExchangeScope();
    ~ExchangeScope();
    ExchangeScope(const ExchangeScope&) = delete;
    ExchangeScope& operator=(const ExchangeScope&) = delete;
};

}  // namespace moe::gpu
