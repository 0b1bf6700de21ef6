/// @file
/// Writes a checkpoint's MoE layers under other names and in another order.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/layer.h"

namespace moe::checkpoint {

struct Conversion {
    std::string from, to;                    ///< folders
    std::string layout;                      ///< of layouts()
    std::optional<std::int64_t> layer = {};  ///< alone; none: the whole checkpoint
    bool overwrite = false;                  ///< a checkpoint, alone, that is at `to`
    Options options = {};
    std::function<void(const std::string&)> progress = [](const std::string&) {};
};

/// What was written.
struct Converted {
    std::vector<std::int64_t> layers;
    std::vector<std::string> files;
    std::int64_t others = 0;  ///< tensors of no MoE block, as they were
};

/// Writes config.json as it was, shards and their index. Whoever opens `to` finds what
/// was there or all of the new one: it is written beside, and renamed at the end. Needs
/// memory for one layer. InputError as load_layer(); for a folder that is there without
/// `overwrite`, or holds anything besides a checkpoint's config, shards and index; and
/// where a layout lacks a name.
Converted convert(const Conversion& conversion);

}  // namespace moe::checkpoint
