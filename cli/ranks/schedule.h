/// @file
/// What devices and hosts of all ranks may do at the same time, from what each rank asks
/// of its device: from the order alone, whatever the machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpu/device_log.h"

namespace moe {

/// Something in one column of one row.
struct Slot {
    enum class Kind { kernel, exchange, meeting, host_wait };
    static constexpr int kHost = -1;  ///< the row of the rank's host

    Kind kind = Kind::kernel;
    std::string name{};          ///< "" of a wait
    int rank = 0, stream = 0;    ///< its row; streams by number, or kHost
    int column = 0, width = 1;   ///< 0 of a wait for what is done
    std::vector<int> members{};  ///< world ranks of an exchange or a meeting
    bool backward = false;
    /// Nothing orders it against something in another stream of its rank.
    bool beside = false;
};

/// As early as order allows, when each kernel and each exchange takes one column.
///
/// TUTORIAL: a kernel comes after what its stream got before it, after what the stream
/// was told to wait for by events, and after all that its host had waited for when it
/// launched it. So a host that waits keeps two streams from running side by side, though
/// each has work. What is left unordered may run at once; whether it does, and what that
/// saves, only a device says.
struct Schedule {
    std::vector<Slot> slots;
    std::vector<int> streams;  ///< by rank; 0 where the device is never asked
    int columns = 0;
    int backward_from = 0;  ///< the first column of the backward

    /// Kernels and exchanges in the second and further streams that may run beside
    /// something in another stream; of the rank that has most.
    std::int64_t beside() const;
    /// Those in the first stream that may; of the rank that has most.
    std::int64_t with() const;
};

/// @param logs  by world rank; exchanges and meetings in the same order on all members
Schedule schedule(const std::vector<std::vector<gpu::LogEntry>>& logs);

}  // namespace moe
