/// @file
/// What every timed part is given, and held against: one run of the layer in the
/// reference.
#pragma once

#include <string>

#include "bench/workload.h"
#include "core/config.h"
#include "core/floors.h"
#include "core/latent_projection.h"
#include "core/module_spec.h"

namespace moe::bench {

/// The layer's values, forward and backward, as the steps of core/steps.h name them.
struct Reference {
    MoEConfig config;
    Inputs inputs;
    ComponentSpec supplier;  ///< "reference_cpu:fp64"
    TensorMap values;        ///< by name; on the host, in the supplier's dtype
    TensorMap gradients;     ///< of parameters, by name
    /// Both without GLU interleaving, as the parts of a layer have them.
    TensorMap plain_parameters, plain_gradients;
    StepSizes sizes;

    const Tensor& at(const std::string& name) const { return values.at(name); }
    /// What a dispatcher is given and gives back: tokens, or with moe_latent_size what
    /// the projections make of them, and with their gradients.
    const Tensor& sent() const {
        return config.moe_latent_size ? at("latent_hidden_states") : inputs.hidden;
    }
    const Tensor& combined() const { return at(name_of_output(config)); }
    const Tensor& d_combined() const {
        return config.moe_latent_size ? at("d_latent_output") : inputs.doutput;
    }
    const Tensor& d_sent() const { return at(name_of_dhidden(config)); }
};

/// Runs the layer once. `dtype` is that of reference_cpu: fp64, or fp32 where memory is
/// short.
Reference run_reference(const MoEConfig& config, Inputs inputs, DType dtype);

/// What came out of the routing, for Run::workload. `model` and `routing` in words.
Workload describe_workload(const Reference& reference, const std::string& model,
                           const std::string& routing);

}  // namespace moe::bench
