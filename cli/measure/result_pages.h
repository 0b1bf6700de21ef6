/// @file
/// What the pages say about speed, made from the results on file: never typed.
#pragma once

#include <string>
#include <vector>

#include "cli/files.h"
#include "cli/markers.h"
#include "cli/measure/result_shelf.h"

namespace moe {

/// The regions of README.md and of docs/speed.md, and the pictures they show, as paths
/// from the project's folder.
struct ResultPages {
    Regions readme, speed;
    std::vector<FileText> pictures;
};

/// Of each device the newest result leads; older ones, and those of another version of
/// the format, get a line. Where no GPU was measured the pages say so, and show what was
/// counted instead.
/// @param shelf   see read_shelf()
/// @param commit  results of another commit are labelled; "": none is
ResultPages make_result_pages(const std::vector<FiledResult>& shelf,
                              const std::string& commit);

}  // namespace moe
