/// @file
/// What a capture has written down: the calls that gave work to its streams, in the order
/// of the host, with the events between them.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "stream.h"

namespace cuda_on_cpu {

struct Graph {
    enum class Kind { work, record, wait };
    struct Step {
        Kind kind;
        int lane;   ///< of a captured stream: 0 is that where the capture began
        int event;  ///< that it records, or waits for
        Work work;
    };
    std::vector<Step> steps;
    int lanes = 1, events = 0;

    /// From cudaMallocAsync(): it is the graph's, at one address in every launch.
    struct Memory {
        std::shared_ptr<void> owner;
        bool is_freed = false;  ///< by a later step
    };
    std::map<const void*, Memory> memory;
};

}  // namespace cuda_on_cpu

struct CUgraph_st {
    std::shared_ptr<const cuda_on_cpu::Graph> graph;
};
