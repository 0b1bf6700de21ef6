#include "distributed/communicators/op_ledger.h"

#include <fmt/format.h>

#include "core/error.h"

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

void OpLedger::take(const Traffic& more) {
    for (const auto& [name, by_peer] : more)
        for (const auto& [peer, bytes] : by_peer) count_sent(name, peer, bytes);
}

Traffic OpLedger::sent() {
    for (const auto& [number, count] : sources_) take(count());
    const std::lock_guard lock(mutex_);
    return sent_;
}

void OpLedger::reset_sent() {
    for (const auto& [number, count] : sources_) count();
    const std::lock_guard lock(mutex_);
    sent_.clear();
}

int OpLedger::add_source(std::function<Traffic()> count) {
    sources_[++last_source_] = std::move(count);
    return last_source_;
}

void OpLedger::remove_source(int source) {
    const auto found = sources_.find(source);
    try {
        take(found->second());
    } catch (const InputError&) {
        // the device has failed, and whoever used it says so
    }
    sources_.erase(found);
}

}  // namespace moe::distributed
