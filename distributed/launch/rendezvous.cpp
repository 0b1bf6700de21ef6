// rendezvous.cpp: the server's loop over its connections, and a rank's end of one.
//
// | kind | from | text |
// |---|---|---|
// | H | rank | hello: "moe <rank> <world size> <fingerprint>" |
// | W, R | server | welcome, all have come; refused, with the line that says why |
// | S, G, V | both | set "<key> <value>", get "<key>", its value |
// | P | both | end everything: the reason; the server adds the rank in front |
// | B, L, D | both | good-bye; rank has left; all have |

#include "distributed/launch/rendezvous.h"

#include <fmt/ranges.h>
#include <poll.h>

#include <atomic>
#include <list>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPeriod{50};

/// The first word of a text, which loses it.
std::string take_word(std::string& text) {
    const std::size_t end = std::min(text.find(' '), text.size());
    const std::string word = text.substr(0, end);
    text.erase(0, end + 1);
    return word;
}

}  // namespace

// ------------------------------------------------------------------------- server
class RendezvousServer::Loop {
  public:
    Loop(int port, int world_size, milliseconds deadline)
        : listener_(listen_on(port)),
          world_size_(world_size),
          start_(Clock::now()),
          deadline_(deadline),
          thread_([this] { run(); }) {}
    ~Loop() {
        stop_ = true;
        thread_.join();
    }
    int port() const { return port_of(listener_); }

  private:
    struct Caller {
        Socket socket;
        FrameReader reader;
        int rank = -1;        // until it has said hello
        std::string wants{};  // the key it waits for
        bool left = false;
    };

    void run() {
        while (!stop_) {
            std::vector<pollfd> entries = {{listener_.fd(), POLLIN, 0}};
            for (const Caller& caller : callers_)
                entries.push_back({caller.socket.fd(), POLLIN, 0});
            poll(entries.data(), entries.size(), int(kPeriod.count()));
            for (auto caller = callers_.begin(); caller != callers_.end();)
                caller = listen_to(*caller) ? std::next(caller) : callers_.erase(caller);
            if (entries[0].revents & POLLIN)
                callers_.push_back({accept_from(listener_), {}});
            if (!decided_ && Clock::now() - start_ > deadline_) refuse(missing_ranks());
        }
    }

    /// False when the connection has ended.
    bool listen_to(Caller& caller) {
        const bool alive = caller.reader.take(caller.socket);
        while (const auto frame = caller.reader.next()) handle(caller, *frame);
        if (!alive && caller.rank >= 0 && !caller.left)
            poison(caller.rank, fmt::format("rank {} has died", caller.rank));
        return alive;
    }

    void handle(Caller& caller, const Frame& frame) {
        std::string text = frame.text;
        // Whoever has not said hello is not one of us.
        if (caller.rank < 0 && frame.kind != 'H') return;
        switch (frame.kind) {
            case 'H': return welcome(caller, text);
            case 'S': {
                const std::string key = take_word(text);
                values_[key] = text;
                for (Caller& other : callers_)
                    if (other.wants == key) answer(other);
                return;
            }
            case 'G': caller.wants = text; return answer(caller);
            case 'P': return poison(caller.rank, text);
            case 'B':
                caller.left = true;
                tell_all({'L', std::to_string(caller.rank)});
                left_.insert(caller.rank);
                if (int(left_.size()) == world_size_) tell_all({'D', ""});
                return;
            default: return;
        }
    }

    void welcome(Caller& caller, std::string& text) {
        int rank = -1, size = 0;
        std::istringstream numbers(text.substr(0, 64));
        std::string magic;
        if (!(numbers >> magic >> rank >> size) || magic != "moe") return;
        for (int word = 0; word < 3; ++word) take_word(text);
        const bool taken = fingerprints_.count(rank) > 0;
        caller.rank = rank;
        if (!refusal_.empty()) return void(send_frame(caller.socket, {'R', refusal_}));
        if (size != world_size_)
            return refuse(
                fmt::format("rank {} was started as one of {} ranks, rank 0 as "
                            "one of {}",
                            rank, size, world_size_));
        if (taken)
            return refuse(fmt::format("two processes were started as rank {}", rank));
        fingerprints_[rank] = text;
        if (int(fingerprints_.size()) < world_size_) return;
        for (const auto& [other, fingerprint] : fingerprints_)
            if (fingerprint != fingerprints_[0])
                return refuse(fmt::format("ranks 0 and {} differ in their config: {}",
                                          other, first_difference(fingerprint)));
        decided_ = true;
        tell_all({'W', ""});
    }

    /// The words around the first place where a config differs from rank 0's.
    std::string first_difference(const std::string& other) const {
        const std::string& mine = fingerprints_.at(0);
        std::size_t at = 0;
        while (at < mine.size() && at < other.size() && mine[at] == other[at]) ++at;
        const auto field = [&](const std::string& text) {
            const std::size_t before = text.rfind(',', at == 0 ? 0 : at - 1);
            const std::size_t begin = before == std::string::npos ? 0 : before + 1;
            return text.substr(begin, std::min(text.find(',', at), begin + 80) - begin);
        };
        return fmt::format("{} and {}", field(mine), field(other));
    }

    std::string missing_ranks() const {
        std::vector<int> missing;
        for (int r = 0; r < world_size_; ++r)
            if (fingerprints_.count(r) == 0) missing.push_back(r);
        return fmt::format("rank {} did not start within {} ms", fmt::join(missing, ", "),
                           deadline_.count());
    }

    void refuse(const std::string& why) {
        decided_ = true;
        refusal_ = why;
        tell_all({'R', why});
    }

    void answer(Caller& caller) {
        const auto value = values_.find(caller.wants);
        if (value == values_.end()) return;
        caller.wants.clear();
        send_frame(caller.socket, {'V', value->second});
    }

    /// The first reason stands.
    void poison(int rank, const std::string& reason) {
        if (poisoned_) return;
        poisoned_ = true;
        tell_all({'P', fmt::format("{} {}", rank, reason)});
    }

    /// Rank 0 last: it may end at once, and this thread with it.
    void tell_all(const Frame& frame) {
        for (const Caller& caller : callers_)
            if (caller.rank > 0) send_frame(caller.socket, frame);
        for (const Caller& caller : callers_)
            if (caller.rank == 0) send_frame(caller.socket, frame);
    }

    Socket listener_;
    int world_size_;
    Clock::time_point start_;
    milliseconds deadline_;
    std::list<Caller> callers_;
    std::map<int, std::string> fingerprints_;  // by rank
    std::map<std::string, std::string> values_;
    std::set<int> left_;
    std::string refusal_;
    bool decided_ = false, poisoned_ = false;
    std::atomic<bool> stop_{false};
    std::thread thread_;  // last: it starts when all the others are there
};

RendezvousServer::RendezvousServer(int port, int world_size, milliseconds deadline)
    : loop_(std::make_unique<Loop>(port, world_size, deadline)) {}
RendezvousServer::~RendezvousServer() = default;

int RendezvousServer::port() const {
    return loop_->port();
}

// --------------------------------------------------------------------- connection
ControlConnection::ControlConnection(const std::string& host, int port, int rank,
                                     int world_size, const std::string& fingerprint,
                                     milliseconds deadline)
    : rank_(rank),
      world_size_(world_size),
      deadline_(deadline),
      socket_(connect_to(host, port, deadline)) {
    send_frame(socket_,
               {'H', fmt::format("moe {} {} {}", rank, world_size, fingerprint)});
    // The server has a deadline of its own, and says who is missing.
    deadline_ += milliseconds(2000);
    const Frame frame = expect_frame("WR", "start");
    deadline_ -= milliseconds(2000);
    if (frame.kind == 'R')
        throw CommunicatorError(
            fmt::format("rank {}: start failed: {}", rank, frame.text));
}

void ControlConnection::set(const std::string& key, const std::string& value) {
    send_frame(socket_, {'S', key + " " + value});
}

std::string ControlConnection::get(const std::string& key) {
    send_frame(socket_, {'G', key});
    return expect_frame("V", "the value of " + key).text;
}

void ControlConnection::poison(const std::string& reason) {
    send_frame(socket_, {'P', one_line(reason)});
}

void ControlConnection::leave() {
    send_frame(socket_, {'B', ""});
}

Frame ControlConnection::expect_frame(const char* kinds, const std::string& what) {
    const auto fail = [&](const std::string& why) {
        throw CommunicatorError(fmt::format("rank {}: {} failed: {}", rank_, what, why));
    };
    const auto start = Clock::now();
    for (;;) {
        while (const auto frame = reader_.next()) {
            if (std::string(kinds).find(frame->kind) != std::string::npos) return *frame;
            if (frame->kind == 'P') fail(frame->text.substr(frame->text.find(' ') + 1));
            news_.push_back(*frame);  // for wait(): a rank may leave meanwhile
        }
        if (Clock::now() - start > deadline_)
            fail(fmt::format("no answer from rank 0 within {} ms", deadline_.count()));
        wait_readable(socket_, kPeriod);
        if (!reader_.take(socket_)) fail("rank 0 has died");
    }
}

ControlConnection::News ControlConnection::wait(milliseconds at_most) {
    std::optional<Frame> frame;
    if (news_.empty()) {
        frame = reader_.next();
    } else {
        frame = std::move(news_.front());
        news_.pop_front();
    }
    if (!frame) {
        wait_readable(socket_, at_most);
        const bool alive = reader_.take(socket_);
        frame = reader_.next();
        if (!frame && !alive) return {News::Kind::lost, 0, "rank 0 has died"};
        if (!frame) return {};
    }
    std::string text = frame->text;
    switch (frame->kind) {
        case 'P': {
            const int rank = std::stoi(take_word(text));
            return {News::Kind::poisoned, rank, text};
        }
        case 'L': return {News::Kind::left, std::stoi(text), ""};
        case 'D': return {News::Kind::all_left, -1, ""};
        default: return {};
    }
}

}  // namespace moe::distributed
