#include "distributed/launch/socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <thread>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {
namespace {

constexpr std::uint32_t kLongestFrame = 1 << 20;

/// A peer whose machine died sends no end of file: ask it, every few seconds.
void prepare(int fd) {
    const int on = 1, idle = 5, interval = 5, probes = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

/// Closed or null addresses are the caller's to handle.
Socket try_connect(const std::string& host, int port) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_family = AF_INET;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0)
        return Socket();
    Socket result;
    for (const addrinfo* a = found; a != nullptr && result.fd() < 0; a = a->ai_next) {
        Socket candidate(socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, 0));
        if (connect(candidate.fd(), a->ai_addr, a->ai_addrlen) == 0)
            result = std::move(candidate);
    }
    freeaddrinfo(found);
    return result;
}

}  // namespace

Socket::~Socket() {
    if (fd_ >= 0) close(fd_);
}

Socket& Socket::operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}

Socket listen_on(int port) {
    Socket listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    setsockopt(listener.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    address.sin_port = htons(std::uint16_t(port));
    if (bind(listener.fd(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        listen(listener.fd(), 1024) != 0)
        reject("port", port,
               fmt::format("{}; set MOE_PORT to a free one", std::strerror(errno)));
    return listener;
}

int port_of(const Socket& listener) {
    sockaddr_in address = {};
    socklen_t length = sizeof address;
    getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&address), &length);
    return ntohs(address.sin_port);
}

Socket accept_from(const Socket& listener) {
    Socket caller(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
    if (caller.fd() >= 0) prepare(caller.fd());
    return caller;
}

Socket connect_to(const std::string& host, int port, std::chrono::milliseconds deadline) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
        Socket connection = try_connect(host, port);
        if (connection.fd() >= 0) {
            prepare(connection.fd());
            return connection;
        }
        if (std::chrono::steady_clock::now() - start > deadline)
            throw CommunicatorError(
                fmt::format("rank 0 = {}:{}: does not answer within {} ms", host, port,
                            deadline.count()));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

bool send_frame(const Socket& socket, const Frame& frame) {
    const auto length = std::uint32_t(frame.text.size());
    MOE_CHECK(length <= kLongestFrame);
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    bytes += frame.kind;
    bytes += frame.text;
    for (std::size_t sent = 0; sent < bytes.size();) {
        const ssize_t count =
            send(socket.fd(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return false;
        sent += std::size_t(count);
    }
    return true;
}

bool FrameReader::take(const Socket& socket) {
    char buffer[4096];
    const ssize_t count = recv(socket.fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    if (count == 0) return false;
    bytes_.append(buffer, std::size_t(count));
    std::uint32_t length = 0;
    while (bytes_.size() > sizeof length) {
        std::memcpy(&length, bytes_.data(), sizeof length);
        if (length > kLongestFrame) return false;
        const std::size_t whole = sizeof length + 1 + length;
        if (bytes_.size() < whole) break;
        frames_.push_back({bytes_[sizeof length], bytes_.substr(whole - length, length)});
        bytes_.erase(0, whole);
    }
    return true;
}

std::optional<Frame> FrameReader::next() {
    if (frames_.empty()) return {};
    Frame frame = std::move(frames_.front());
    frames_.pop_front();
    return frame;
}

void wait_readable(const Socket& socket, std::chrono::milliseconds at_most) {
    pollfd entry = {socket.fd(), POLLIN, 0};
    poll(&entry, 1, int(at_most.count()));
}

}  // namespace moe::distributed
