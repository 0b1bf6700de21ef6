/// @file
/// Which lane of a warp touches which sector of global memory, or which bank of shared
/// memory, drawn from accesses that were recorded.
#pragma once

#include <string>
#include <vector>

#include "cuda_on_cpu/observe.h"

namespace moe::profile {

/// One instruction of a warp, and the words above its drawing.
struct LanesPanel {
    std::string place;   ///< "linear.cu:31"
    std::string source;  ///< the text of that line
    cuda_on_cpu::observe::Sample sample;

    bool operator==(const LanesPanel&) const = default;
};

/// What a panel shows, as numbers.
struct LanesFigures {
    std::vector<std::uint64_t> sectors;  ///< touched, in order; of global memory
    unsigned used_bytes = 0;             ///< distinct ones
    /// Of shared memory: by turn and bank the word, or none; see observe.md.
    std::vector<std::array<std::uint64_t, 32>> turns;
    unsigned fewest_turns = 0;
    static constexpr std::uint64_t kNoWord = ~std::uint64_t{0};
};
LanesFigures figures_of(const cuda_on_cpu::observe::Sample& sample);

/// The instructions, one below the other, as an SVG file.
std::string lanes_picture(const std::vector<LanesPanel>& panels, const std::string& title,
                          const std::string& subtitle);

/// The instructions of a report's kernels, each once, at this line;
/// at each line of the file where it is 0.
/// @param source  the file's text
std::vector<LanesPanel> panels_of(const cuda_on_cpu::observe::Report& report,
                                  const std::string& path, int line,
                                  const std::string& source);

}  // namespace moe::profile
