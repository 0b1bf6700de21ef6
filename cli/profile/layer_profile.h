/// @file
/// One forward and one backward of the layer in the observed build: what each step's
/// kernels did to memory, beside the bytes that the step must move at the least.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/floors.h"
#include "core/module_spec.h"
#include "core/steps.h"
#include "cuda_on_cpu/observe.h"

namespace moe::profile {

using cuda_on_cpu::observe::Counters;

/// A kernel's launches in one step.
struct KernelUse {
    std::string kernel;
    std::int64_t launches = 0;
    Counters counters;
    unsigned threads = 0;  ///< of a block, the most of all launches
    std::size_t smem = 0;  ///< bytes of shared memory of a block, the most
};

struct StepProfile {
    std::optional<Steps> steps;  ///< one, or those that are one; none: between them
    std::vector<KernelUse> kernels;
    Floor floor;  ///< of core/floors.h, as fused as the tier is

    std::int64_t launches() const;
    Counters sum() const;
};

struct LayerProfile {
    ModuleSpec spec;
    StepSizes sizes;
    std::vector<StepProfile> steps;  ///< those with launches, in the order of the layer
    cuda_on_cpu::observe::Report report;
};

struct LayerRequest {
    MoEConfig config;  ///< finalized
    ModuleSpec spec;   ///< of tiers that run on the executor
    std::int64_t seq_length = 0, micro_batch_size = 0;
    std::uint64_t seed = 0;
    bool races = false;
};

/// Runs the layer once, with random weights and tokens. DeviceError when a launch fails.
LayerProfile profile_layer(const LayerRequest& request);

/// The steps of router, dispatcher, experts or shared_experts; of "layer", all.
bool belongs_to(const std::optional<Steps>& steps, const std::string& component);

}  // namespace moe::profile
