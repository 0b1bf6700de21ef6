/// @file
/// A timeline as a picture that stands alone: who waits for whom, and what goes on
/// meanwhile.
#pragma once

#include <string>

#include "cli/timeline/events.h"

namespace moe::timeline {

/// An SVG file of the block that is shown.
/// @param title  plain text
std::string timeline_picture(const Timeline& timeline, const std::string& title);

}  // namespace moe::timeline
