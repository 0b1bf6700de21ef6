#include "gpu/device_log.h"

#include <algorithm>

#include "gpu/stream.h"

namespace moe::gpu {
namespace {

thread_local DeviceLog* log_of_thread = nullptr;
thread_local const std::vector<int>* meeting = nullptr;

}  // namespace

DeviceLog::DeviceLog() {
    log_of_thread = this;
}

DeviceLog::~DeviceLog() {
    log_of_thread = nullptr;
}

void DeviceLog::add(LogEntry entry) {
    entry.backward = backward_;
    entries_.push_back(std::move(entry));
}

int DeviceLog::number_of(const void* stream) {
    const auto found = std::find(streams_.begin(), streams_.end(), stream);
    if (found == streams_.end()) streams_.push_back(stream);
    return int(std::find(streams_.begin(), streams_.end(), stream) - streams_.begin());
}

DeviceLog* device_log() {
    return log_of_thread;
}

MeetingScope::MeetingScope(const std::vector<int>& members) {
    meeting = &members;
}

MeetingScope::~MeetingScope() {
    meeting = nullptr;
}

void log_launch(const char* kernel, const void* stream) {
    if (log_of_thread == nullptr) return;
    LogEntry entry{.name = kernel, .stream = log_of_thread->number_of(stream)};
    if (meeting != nullptr) {
        entry.kind = LogEntry::Kind::meeting;
        entry.members = *meeting;
    }
    log_of_thread->add(std::move(entry));
}

void log_exchange(const std::string& name, const std::vector<int>& members,
                  bool on_host) {
    if (log_of_thread == nullptr || meeting != nullptr || members.size() == 1) return;
    log_of_thread->add({.kind = LogEntry::Kind::exchange,
                        .name = name,
                        .stream = log_of_thread->number_of(current_stream()),
                        .on_host = on_host,
                        .members = members});
}

void log_wait_for_stream(const void* later, const void* earlier) {
    if (log_of_thread == nullptr) return;
    log_of_thread->add({.kind = LogEntry::Kind::wait_for_stream,
                        .stream = log_of_thread->number_of(later),
                        .other = log_of_thread->number_of(earlier)});
}

void log_host_wait() {
    if (log_of_thread == nullptr) return;
    log_of_thread->add(
        {.kind = LogEntry::Kind::host_wait, .stream = LogEntry::kAllStreams});
}

void log_host_wait(const void* stream) {
    if (log_of_thread == nullptr) return;
    log_of_thread->add(
        {.kind = LogEntry::Kind::host_wait, .stream = log_of_thread->number_of(stream)});
}

}  // namespace moe::gpu
