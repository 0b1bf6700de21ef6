/// @file
/// Where the numbers of the presets were read.
#pragma once

#include <string>

namespace moe {

/// The public files that a preset was read from, as "repository or package: file":
/// Megatron-LM at commit d98e8a64, Megatron-Bridge at 067f987d, transformers 5.24.0. A
/// coefficient from Megatron's or Bridge's is one of Megatron's loss. InputError for a
/// name that preset() does not know.
const std::string& preset_source(const std::string& name);

}  // namespace moe
