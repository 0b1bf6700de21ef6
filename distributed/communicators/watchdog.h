/// @file
/// Fail-stop: when one rank dies, hangs or gives up, every other process says so in one
/// line and ends, whatever it waits in: a message, a kernel, a lock.
#pragma once

#include <signal.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <thread>

#include "distributed/communicators/op_ledger.h"
#include "distributed/launch/rendezvous.h"

namespace moe::distributed {

/// What a process ends with when its ranks could not go on together (EX_SOFTWARE).
inline constexpr int kExitRanksFailed = 70;

/// Watches one process from a thread of its own. It ends the process, with _exit(), when
/// another rank has died or given up, when an operation takes longer than its deadline,
/// when a rank has left without an operation that this one is in, and when the transport
/// reports an error. A launcher that saw another rank die sends SIGTERM to the rest: the
/// watchdog takes it, and ends the process when it has said why, or half a second later.
class Watchdog {
  public:
    /// @param deadline         for one operation. An operation that has a deadline of its
    ///                         own should have a shorter one: it knows more
    /// @param transport_error  empty while all is well; called again and again
    Watchdog(std::shared_ptr<OpLedger> ledger, std::unique_ptr<ControlConnection> control,
             std::chrono::milliseconds deadline,
             std::function<std::string()> transport_error = {});
    ~Watchdog();

    /// Tells the other ranks that this one gives up; returns when they know, or after a
    /// second. Afterwards this process is no longer watched.
    void abort(const std::string& reason);

    /// This rank is done. Returns when all are; ends the process should one not get
    /// there.
    void leave();

  private:
    void run();
    void look_at_control();
    void look_at_operation();
    void look_at_launcher();
    /// Outside an operation: perhaps the rank is just leaving one by the same error, and
    /// is about to say more of it than the watchdog knows.
    void wait_for_own_words() const;
    [[noreturn]] void end_process(const std::string& why);

    std::shared_ptr<OpLedger> ledger_;
    std::unique_ptr<ControlConnection> control_;
    std::chrono::milliseconds deadline_;
    std::function<std::string()> transport_error_;
    std::set<int> left_;                               // world ranks
    std::chrono::steady_clock::time_point last_left_;  // when the last of them went
    std::atomic<bool> gave_up_{false}, everybody_knows_{false}, stop_{false};
    struct sigaction former_;                       // what SIGTERM did before
    std::chrono::steady_clock::time_point told_{};  // by SIGTERM, to end
    std::thread thread_;  // last: it starts when all the others are there
};

}  // namespace moe::distributed
