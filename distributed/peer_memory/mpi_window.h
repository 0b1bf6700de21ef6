/// @file
/// Peer memory over MPI: a window that the processes of one machine share.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "distributed/communicators/mpi_messages.h"
#include "distributed/peer_memory/peer_memory.h"

namespace moe::distributed {

/// Every rank of the group calls this, and is known to be here. The memory is zeroed on
/// this rank; the caller meets the others before anybody writes. In device space it is
/// device memory of the CPU executor. InputError, on every rank, when the group has ranks
/// on several machines.
/// @param name    the group's, for messages
/// @param failed  once true, freeing no longer waits for the other ranks
std::shared_ptr<PeerMemory> allocate_window(MPI_Comm comm, const std::string& name,
                                            std::size_t bytes, MemorySpace space,
                                            const bool* failed);

}  // namespace moe::distributed
