/// @file
/// Counted figures in words, as the terminal and the page both say them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/profile/layer_profile.h"

namespace moe::profile {

/// Of loads and stores: "31.2", or "-" without requests.
std::string sectors_per_request(const Counters& counters);
/// Of loads and stores: the sectors that the same bytes would need, packed, as a share of
/// those touched, "12 %".
std::string efficiency(const Counters& counters);
/// "1,234", or "-" for none.
std::string number(std::uint64_t value);
/// Compulsory bytes over the floor's, "1.4x"; "" for a step without a floor.
std::string over_floor(const StepProfile& step);

/// A kernel without "_kernel" at its end.
std::string short_name(const std::string& kernel);
/// "⑦ FC1", "⑦–⑧ FC1 …", or "between the steps".
std::string name_of(const StepProfile& step);
/// A file by its path in the source tree.
std::string in_the_tree(const std::string& file);
/// Whether `path` names this file, or the end of its path in the tree.
bool is_file(const std::string& file, const std::string& path);

/// Sectors and wavefronts that a better order of the same accesses would not need.
std::uint64_t waste(const Counters& counters);

struct WorstLine {
    std::string place;  ///< "naive_gpu/linear.cu:42"
    Counters counters;
};

/// The five lines with the most waste of the kernels of a component's steps, see
/// belongs_to().
std::vector<WorstLine> worst_lines(const LayerProfile& profile,
                                   const std::string& component);

}  // namespace moe::profile
