/// @file
/// Messages between pairs of ranks of an MPI group, and a wait for them that ends.
#pragma once

#define OMPI_SKIP_MPICXX 1  // MPI's old C++ classes, which nobody uses
#define MPICH_SKIP_MPICXX 1

#include <mpi.h>

#include <chrono>
#include <optional>
#include <vector>

namespace moe::distributed {

/// CommunicatorError, with MPI's own words, unless the call succeeded.
void check_mpi(int status, const char* call);

/// Messages under way within one group. Memory must live until wait() has returned.
class MpiMessages {
  public:
    explicit MpiMessages(MPI_Comm comm) : comm_(comm) {}

    void receive(int peer, void* bytes, std::size_t count);
    void send(int peer, const void* bytes, std::size_t count);

    /// Nothing when all messages have arrived and left; after the deadline, the first
    /// peer that one is missing from, or that did not take one.
    std::optional<int> wait(std::chrono::milliseconds deadline);

  private:
    MPI_Request& add(int peer, bool receives);
    std::optional<int> give_up();

    MPI_Comm comm_;
    std::vector<MPI_Request> requests_;
    std::vector<int> peers_;
    std::vector<bool> receives_;
};

}  // namespace moe::distributed
