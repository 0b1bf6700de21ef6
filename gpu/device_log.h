/// @file
/// What one rank asks of its device, in the order in which it asks: for whoever wants to
/// know what has to wait for what.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe::gpu {

struct LogEntry {
    enum class Kind {
        launch,
        exchange,         ///< a collective; the back-end's own launches are no entries
        meeting,          ///< a kernel in which the devices of several ranks meet
        wait_for_stream,  ///< `stream` goes on when `other` has got as far as now
        host_wait         ///< the host waits for `stream`, or kAllStreams
    };
    static constexpr int kAllStreams = -1;
    Kind kind = Kind::launch;
    std::string name{};          ///< of the kernel or the collective
    int stream = 0, other = 0;   ///< 0 is the default stream, others as they come
    bool on_host = false;        ///< an exchange of what the host holds
    bool backward = false;       ///< after begin_backward()
    std::vector<int> members{};  ///< world ranks, of an exchange or a meeting
    bool operator==(const LogEntry&) const = default;
};

/// While it lives, what the calling thread asks is written down. One at a time.
class DeviceLog {
  public:
    DeviceLog();
    ~DeviceLog();
    DeviceLog(const DeviceLog&) = delete;
    DeviceLog& operator=(const DeviceLog&) = delete;

    void begin_backward() { backward_ = true; }
    const std::vector<LogEntry>& entries() const { return entries_; }

    void add(LogEntry entry);
    /// A stream's number in the entries.
    int number_of(const void* stream);

  private:
    std::vector<LogEntry> entries_;
    std::vector<const void*> streams_ = {nullptr};
    bool backward_ = false;
};

/// The calling thread's, or null.
DeviceLog* device_log();

/// While it lives, the kernel that this thread launches is a meeting of these ranks, and
/// what its ranks exchange for it is no entry.
class MeetingScope {
  public:
    explicit MeetingScope(const std::vector<int>& members);
    ~MeetingScope();
    MeetingScope(const MeetingScope&) = delete;
    MeetingScope& operator=(const MeetingScope&) = delete;
};

// For whoever asks; they do nothing where nobody writes it down.
void log_launch(const char* kernel, const void* stream);
/// In the thread's current stream.
void log_exchange(const std::string& name, const std::vector<int>& members, bool on_host);
void log_wait_for_stream(const void* later, const void* earlier);
void log_host_wait();
void log_host_wait(const void* stream);

}  // namespace moe::gpu
