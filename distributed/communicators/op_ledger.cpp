#include "distributed/communicators/op_ledger.h"

#include <fmt/format.h>

namespace moe::distributed {

std::string to_string(const Operation& operation) {
    return fmt::format("{} #{} on group {}, {} bytes", operation.name, operation.sequence,
                       operation.group, operation.bytes);
}

Operation OpLedger::begin(std::string name, std::string group, std::int64_t bytes,
                          std::vector<int> members) {
    const std::lock_guard lock(mutex_);
    Operation operation{std::move(name), std::move(group), ++sequence_, bytes,
                        std::move(members)};
    running_ = Running{operation, std::chrono::steady_clock::now()};
    return operation;
}

void OpLedger::end() {
    const std::lock_guard lock(mutex_);
    running_.reset();
}

std::optional<OpLedger::Running> OpLedger::running() const {
    const std::lock_guard lock(mutex_);
    return running_;
}

void OpLedger::count_sent(const std::string& name, int peer, std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    sent_[name][peer] += bytes;
}

std::map<std::string, BytesByPeer> OpLedger::sent() const {
    const std::lock_guard lock(mutex_);
    return sent_;
}

void OpLedger::reset_sent() {
    const std::lock_guard lock(mutex_);
    sent_.clear();
}

}  // namespace moe::distributed
