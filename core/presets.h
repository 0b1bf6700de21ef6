/// @file
/// Where the numbers of the presets were read.
#pragma once

#include <string>

namespace moe {

/// The public files that a preset was read from, as "repository or package: file". Paths
/// of Megatron-Bridge are of its commit 067f987d, transformers is 5.24.0. InputError for
/// a name that preset() does not know.
const std::string& preset_source(const std::string& name);

}  // namespace moe
