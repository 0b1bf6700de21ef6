/// @file
/// Which fields of a config go together.
#pragma once

#include "core/config.h"

namespace moe {

/// InputError unless a size is from 1 to 2^31.
void require_positive(const std::string& field, std::int64_t value);

/// InputError "<field> = <value>: <allowed>" where a rule is broken, Megatron's or ours;
/// of several groups of rules, the first of each, in one line.
/// @param config     with its derived fields resolved
/// @param etp_given  false: ETP is TP, which is the one to name
void check_rules(const MoEConfig& config, bool etp_given);

}  // namespace moe
