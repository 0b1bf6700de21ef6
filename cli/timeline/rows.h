/// @file
/// The rows of a timeline's picture: what a block's rows become when warps that multiply
/// together share one, and bars that overlap lie in lanes.
#pragma once

#include <string>
#include <vector>

#include "cli/timeline/events.h"

namespace moe::timeline {

/// A bar and the lane of its row in which it lies, from 0.
struct Placed {
    Bar bar;
    int lane;
};

struct Strip {
    std::string label;
    std::string note;  ///< beside the label: "full"; or ""
    std::vector<Placed> bars;
    std::vector<Mark> marks;
    int lanes = 1;
};

/// Strips below one heading.
struct Section {
    std::string heading;
    std::vector<Strip> strips;
};

/// What warps wait for; what goes on by itself; what mbarriers and barriers do. None of
/// them is empty.
std::vector<Section> sections(const Block& block);

}  // namespace moe::timeline
