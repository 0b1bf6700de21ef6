/// @file
/// What the ranks of a group have to agree on before data moves, and the line with which
/// all of them fail when they do not.
#pragma once

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// What a rank brings to a collective, as the others must know it.
struct Offer {
    std::string operation;   ///< "all_to_all"
    std::int64_t bytes = 0;  ///< of its data, or of one row where rows are counted
    int root = 0;            ///< of a broadcast
    int color = 0, key = 0;  ///< of a split; these may differ
    Splits received, sent;   ///< rows by rank, where the operation has them
    bool operator==(const Offer&) const = default;
};

/// Empty when the offers fit together: the same operation, root, bytes and rows, and what
/// a rank sends in an all-to-all is what the other expects. Otherwise what differs, in
/// words that are the same on every rank.
/// @param members  world rank of every rank of the group
/// @param offers   by rank of the group
std::string disagreement(const std::string& group, const std::vector<int>& members,
                         const std::vector<Offer>& offers);

/// The ranks that share the color of rank `rank` in a split, ordered by key, then rank.
std::vector<int> ranks_of_part(const std::vector<Offer>& offers, int rank);

/// A color of that part that is not negative, as MPI and NCCL want it.
int color_of_part(const std::vector<int>& ranks);

/// "rank 1: barrier #3 on group ep, 0 bytes failed: <why>".
std::string failure_line(int world_rank, const Operation& operation,
                         const std::string& why);

}  // namespace moe::distributed
