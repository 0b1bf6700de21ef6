/// @file
/// The books of one rank: which operation it is in, for watchdogs and messages, and what
/// it has sent to whom.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace moe::distributed {

/// One collective as one rank sees it.
struct Operation {
    std::string name;           ///< "all_to_all"
    std::string group;          ///< "ep"
    std::int64_t sequence = 0;  ///< counts this rank's operations, from 1
    std::int64_t bytes = 0;     ///< that this rank puts in
    std::vector<int> members;   ///< world ranks of the group
};

/// "all_to_all #7 on group ep, 1280 bytes".
std::string to_string(const Operation& operation);

/// Bytes that a rank sent, by the world rank that got them. What stays on the rank is not
/// counted.
using BytesByPeer = std::map<int, std::int64_t>;
/// The same by the name of the operation.
using Traffic = std::map<std::string, BytesByPeer>;

/// Thread-safe: a watchdog reads while the rank works.
class OpLedger {
  public:
    struct Running {
        Operation operation;
        std::chrono::steady_clock::time_point start;
    };

    /// Opens an operation, and gives it the next sequence number.
    Operation begin(std::string name, std::string group, std::int64_t bytes,
                    std::vector<int> members = {});
    void end();
    /// The operation this rank is in, if any.
    std::optional<Running> running() const;

    /// Books `bytes` to the world rank `peer` under `name` ("all_to_all", …).
    void count_sent(const std::string& name, int peer, std::int64_t bytes);
    /// Everything sent since the last reset, by operation. Waits for devices that count.
    Traffic sent();
    void reset_sent();

    /// Whoever counts elsewhere, on a device, is asked when somebody wants to know.
    /// @param count  what was sent since its last call, for the rank's own thread
    /// @return to be given to remove_source(), which asks it a last time
    int add_source(std::function<Traffic()> count);
    void remove_source(int source);

  private:
    mutable std::mutex mutex_;
    std::optional<Running> running_;
    std::int64_t sequence_ = 0;
    void take(const Traffic& more);

    Traffic sent_;
    std::map<int, std::function<Traffic()>> sources_;
    int last_source_ = 0;
};

}  // namespace moe::distributed
