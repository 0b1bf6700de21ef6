/// @file
/// The little of TCP that ranks need: sockets that close themselves, and frames.
#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <string>

namespace moe::distributed {

/// Owns a file descriptor.
class Socket {
  public:
    explicit Socket(int fd = -1) : fd_(fd) {}
    ~Socket();
    Socket(Socket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
    Socket& operator=(Socket&& other) noexcept;
    int fd() const { return fd_; }

  private:
    int fd_;
};

/// Listens on all interfaces. InputError naming the port when somebody else has it.
/// @param port  0: any that is free
Socket listen_on(int port);
int port_of(const Socket& listener);
/// The next caller's connection; fd -1 when there is none.
Socket accept_from(const Socket& listener);

/// Tries until the deadline, because the other side may start later. CommunicatorError
/// naming host and port.
Socket connect_to(const std::string& host, int port, std::chrono::milliseconds deadline);

/// One message: a letter for its kind, and text or bytes.
struct Frame {
    char kind = 0;
    std::string text;
};

/// False when the connection is broken.
bool send_frame(const Socket& socket, const Frame& frame);

/// Frames as they arrive on one connection.
class FrameReader {
  public:
    /// Takes what has arrived, without waiting; false when the other side has closed, or
    /// speaks another language.
    bool take(const Socket& socket);
    std::optional<Frame> next();

  private:
    std::string bytes_;
    std::deque<Frame> frames_;
};

/// Waits until there is something to read on the connection, or for that long.
void wait_readable(const Socket& socket, std::chrono::milliseconds at_most);

}  // namespace moe::distributed
