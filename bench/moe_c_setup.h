/// @file
/// What a layer of the C interface is made from, as text.
#pragma once

#include <string>

#include "core/config.h"
#include "core/module_spec.h"

namespace moe::bench {

/// All that can run here, as the JSON of moe_suppliers().
std::string describe_suppliers();

/// A finalized config for one rank, from JSON or a preset's name. InputError otherwise.
MoEConfig parse_config(const std::string& text);

/// "naive_gpu:bf16" for all components, or a mix as ModuleSpec::parse() takes it, over
/// reference_cpu:fp32.
ModuleSpec parse_spec(const std::string& text);

}  // namespace moe::bench
