/// @file
/// Peer memory between processes whose GPUs are in one machine: CUDA's memory handles.
/// The same device may serve several processes. Source: CUDA Runtime API, cudaIpc….
#pragma once

#include <functional>
#include <memory>

#include "distributed/peer_memory/peer_memory.h"

namespace moe::distributed {

/// Allocates, and opens the other ranks' allocations; every rank of a group calls it.
/// DeviceError where a GPU cannot reach another one's memory.
///
/// The allocation lives until the process ends: another rank may still have it open when
/// this one has no more use for it. Heaps grow by doubling, so this is at most as much
/// again.
/// @param all_gather  of the group: host tensors (size, n) and (1, n)
std::shared_ptr<PeerMemory> make_ipc_memory(
    int rank, int size, std::size_t bytes,
    const std::function<void(const TensorView& whole, const TensorView& part)>&
        all_gather);

}  // namespace moe::distributed
