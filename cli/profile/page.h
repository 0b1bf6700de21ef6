/// @file
/// A profile as a page of the documentation shows it.
#pragma once

#include <string>
#include <vector>

#include "cli/markers.h"
#include "cli/profile/layer_profile.h"

namespace moe::profile {

/// "g++ 12.2.0", which compiled the kernels.
std::string compiler_in_words();

/// Regions for with_regions(…, "profile"). Counts only: nothing of a bound.
/// @param model  LayerOptions::model() or the like
Regions page_regions(const LayerProfile& profile, const std::string& model,
                     const MoEConfig& config);

/// Regions of a page that shows tiers beside each other, row by row what the most fused
/// one takes at once. A page may have such of several models, each with markers of its
/// own: with_regions(…, "profile MODEL").
Regions beside_regions(const std::vector<LayerProfile>& profiles,
                       const std::string& model, const MoEConfig& config);

}  // namespace moe::profile
