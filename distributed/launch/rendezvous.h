/// @file
/// Where ranks meet before they have a communicator, and how they hear of each other's
/// end: rank 0 runs a server, every rank (0 too) keeps one TCP connection to it. A
/// connection that ends before its rank has said good-bye is a dead rank.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>

#include "distributed/launch/socket.h"

namespace moe::distributed {

/// Runs in a thread of rank 0.
class RendezvousServer {
  public:
    /// @param port      0: any that is free. InputError when somebody else has it
    /// @param deadline  by which all ranks must have come
    RendezvousServer(int port, int world_size, std::chrono::milliseconds deadline);
    ~RendezvousServer();
    int port() const;

  private:
    class Loop;
    std::unique_ptr<Loop> loop_;
};

/// One rank's connection to the server. What it sends may come from several threads; only
/// one may read.
class ControlConnection {
  public:
    /// Returns when all ranks have come. CommunicatorError, the same line on every rank
    /// that came, when one stays away, when two claim one number, when they disagree
    /// about the number of ranks, or when their fingerprints differ.
    /// @param fingerprint  what all ranks must have in common: the config as text
    ControlConnection(const std::string& host, int port, int rank, int world_size,
                      const std::string& fingerprint, std::chrono::milliseconds deadline);

    int rank() const { return rank_; }
    int world_size() const { return world_size_; }

    /// Leaves bytes for the others under a name, and waits for what one of them left.
    void set(const std::string& key, const std::string& value);
    std::string get(const std::string& key);

    /// Tells all ranks, this one too, to end for that reason.
    void poison(const std::string& reason);
    /// Says that this rank has nothing more to do.
    void leave();

    /// What the server has to say.
    struct News {
        enum class Kind {
            none,      ///< within the time given
            poisoned,  ///< rank `rank` ended everything: `text`
            left,      ///< rank `rank` has said good-bye
            all_left,  ///< everybody has
            lost       ///< the connection: rank 0 is gone
        };
        Kind kind = Kind::none;
        int rank = -1;
        std::string text;
    };
    News wait(std::chrono::milliseconds at_most);

  private:
    Frame expect_frame(const char* kinds, const std::string& what);

    int rank_, world_size_;
    std::chrono::milliseconds deadline_;
    Socket socket_;
    FrameReader reader_;
    std::deque<Frame> news_;  // that came while a value was waited for
};

}  // namespace moe::distributed
