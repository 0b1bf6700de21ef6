/// @file
/// Results on file: docs/results/DEVICE/DATE-COMMIT.json under the project's
/// folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/result.h"

namespace moe {

/// A file on the shelf.
struct FiledResult {
    std::string path;    ///< from the project's folder: "docs/results/executor/….json"
    std::string device;  ///< its folder's name
    int version = 0;     ///< of the format
    /// Nothing when the file has another version than this build reads.
    std::optional<bench::Result> result;
};

/// Where a result belongs: "docs/results/nvidia-h100-80gb-hbm3/2026-11-27-….json", or in
/// "executor" or "cpu" when it is one without a GPU.
std::string place_of(const bench::Result& result);

/// All that is filed, device by device, GPUs before others, the newest first; files of
/// another version come last of a device, by name. InputError for a file that cannot be
/// read or lies in a wrong place.
std::vector<FiledResult> read_shelf(const std::string& root);

/// Files a result; returns its path from `root`. InputError when the file is no result of
/// this version, or when there is one in its place.
std::string add_to_shelf(const std::string& root, const std::string& file);

/// Pictures that lie on the shelf, as paths from `root`.
std::vector<std::string> pictures_on_shelf(const std::string& root);

}  // namespace moe
