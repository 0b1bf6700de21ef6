/// @file
/// The tier "reference_cpu": the definition, in fp64 and fp32, on any CPU.
#pragma once

namespace moe::cpu {

/// Makes the tier known to core/tier.h. Call once.
void register_reference_cpu();

}  // namespace moe::cpu
