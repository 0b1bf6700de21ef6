/// @file
/// Ranks as threads of one process: for tests, for stepping a whole dispatch in one
/// debugger, and for several ranks on one GPU.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// Runs `program` once per rank, each in a thread of its own (with one OpenMP thread),
/// and returns when all have ended. The communicator it gets is the group "world".
///
/// A rank that throws ends the others: whatever they wait for fails with a
/// CommunicatorError that names it. Then the first rank's exception is thrown here. A
/// rank that stays away from a collective for longer than `deadline` ends all as well.
void run_ranks(int world_size, const std::function<void(Communicator& world)>& program,
               std::chrono::milliseconds deadline = std::chrono::seconds(60));

}  // namespace moe::distributed
