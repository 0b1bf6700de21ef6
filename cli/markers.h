/// @file
/// Regions of a page that a command writes: what stands between two comments, an opening
/// one with the region's name and a closing one. The rest of the page stays as it is.
#pragma once

#include <map>
#include <string>

namespace moe {

/// Markdown by the name of its region.
using Regions = std::map<std::string, std::string>;

/// The page with every region replaced. InputError, naming the page, when a marker is
/// missing, stands twice, is not closed or has a name that `regions` does not know.
/// @param page  its path, for messages
/// @param text  what it says now
/// @param command  "results": the markers are <!-- moe results: NAME --> and
///                 <!-- /moe results -->
std::string with_regions(const std::string& page, const std::string& text,
                         const Regions& regions, const std::string& command = "results");

}  // namespace moe
