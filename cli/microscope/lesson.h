/// @file
/// The lesson of docs/microscope.md: one product in five versions, each looked at in the
/// observed build.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/markers.h"
#include "cuda_on_cpu/observe.h"
#include "docs/microscope/linear.h"

namespace moe::microscope {

/// Of y (rows, out) = x (rows, in) Wᵀ.
struct Sizes {
    std::int64_t rows = 64, out = 192, in = 512;
};

/// InputError, naming the flag, where a size is not for all five versions.
void require_sizes(const Sizes& sizes);

/// What one launch of a version did.
struct Look {
    Version version;
    std::vector<float> y;
    cuda_on_cpu::observe::Report report;
    std::string timeline;  ///< of `pipelined`, as CUDA_ON_CPU_TRACE writes it

    const cuda_on_cpu::observe::Counters& counters() const {
        return report.launches[0].counters;
    }
};

/// Runs a version on small whole numbers, whose products and sums are exact.
/// @param races  also look for races: three times as slow
Look look_at(Version version, const Sizes& sizes, bool races = false);

/// The same y from all, and nothing found.
bool is_clean(const std::vector<Look>& looks);

/// The table that the terminal shows, and the verdict below it.
void print_looks(const std::vector<Look>& looks);

/// Each version's kernel with its counters.
nlohmann::json to_json(const std::vector<Look>& looks, const Sizes& sizes);

/// Regions for with_regions(…, "microscope").
Regions page_regions(const std::vector<Look>& looks, const Sizes& sizes);

struct Picture {
    std::string name;  ///< "uncoalesced.svg"
    std::string svg;
};
/// What the lanes of each version touch, the timeline of the last, and all five in bars.
std::vector<Picture> pictures(const std::vector<Look>& looks, const Sizes& sizes);

}  // namespace moe::microscope
