/// @file
/// `moe trace --ranks`: a whole dispatch of a few tokens, all ranks in one view.
#pragma once

#include "cli/ranks/run.h"

namespace moe {

struct RankTraceRequest {
    RankJob job;  ///< tokens are numbered rank by rank
    distributed::ParallelSizes sizes;
    std::int64_t seq_len = 0, micro_batch = 0;  ///< of all ranks together
    std::string note;                           ///< a line for the header, or ""
};

/// Prints who holds what, what goes where, what comes back, and whether the outputs are
/// those of one rank. Rows get their names from the values that the ranks recorded; a row
/// that is not where the routing map wants it ends in a ✗. @return the exit code
int trace_ranks(const RankTraceRequest& request);

}  // namespace moe
