/// @file
/// Peer memory between GPUs that reach each other's memory by load and store, over NCCL's
/// symmetric windows. Source: NCCL, ncclCommWindowRegister; nccl_device,
/// ncclGetLsaPointer.
#pragma once

#include <nccl.h>

#include <chrono>
#include <memory>

#include "distributed/peer_memory/peer_memory.h"

namespace moe::distributed {

/// Registers memory of every rank as one window; every rank of the group calls it. Null,
/// on every rank, where NCCL cannot map all of them: no peer access, several machines, or
/// several ranks on one GPU. The window lives until the process ends, see ipc_memory.h.
/// DeviceError when NCCL or CUDA fails.
/// @param comm      non-blocking, settled
/// @param deadline  for the registration
std::shared_ptr<PeerMemory> make_window_memory(ncclComm_t comm, int rank, int size,
                                               std::size_t bytes,
                                               std::chrono::milliseconds deadline);

}  // namespace moe::distributed
