/// @file
/// What `moe profile` prints and writes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/profile/layer_profile.h"

namespace moe::profile {

/// Steps with their kernels: requests, sectors, bytes, and the floor.
void print_kernels(const LayerProfile& profile, const std::string& component);
/// Several tiers, step by step: launches, and the bytes of each.
void print_beside(const std::vector<LayerProfile>& profiles,
                  const std::string& component);
/// The terms of the model, step by step.
void print_bounds(const LayerProfile& profile, const std::string& component);
/// The five lines of these steps' kernels with the most sectors and wavefronts beyond the
/// ideal.
void print_worst_lines(const LayerProfile& profile, const std::string& component);
void print_findings(const LayerProfile& profile);

nlohmann::json to_json(const LayerProfile& profile);
nlohmann::json to_json(const Counters& counters);

/// A source with each line's figures before it. InputError, naming --annotate, when no
/// line of it touched memory.
/// @param path  its name, or the end of it, in the tree
std::string annotated(const std::vector<LayerProfile>& profiles, const std::string& path,
                      const std::string& source);

}  // namespace moe::profile
