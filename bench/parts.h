/// @file
/// Parts of the layer, ready to be run again and again: each with the reference's own
/// inputs, and held against what the reference made of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/reference.h"
#include "core/module_spec.h"

namespace moe::bench {

/// How far results are from the reference.
struct Deviation {
    double error = 0.0, bound = 0.0;  ///< of the tensor with the largest share
    std::string detail;               ///< the first that is too far off; "" when none
    bool ok() const { return detail.empty(); }
};

/// A component, or the whole layer. Inputs are where it wants them before it runs.
class Part {
  public:
    virtual ~Part() = default;
    virtual void forward() = 0;
    /// Needs a forward before.
    virtual void backward() = 0;
    /// What the last forward, or backward, made, against the reference.
    virtual Deviation forward_deviation() const = 0;
    virtual Deviation backward_deviation() const = 0;
    /// Bytes that a forward keeps for its backward; of the whole layer alone.
    virtual std::int64_t kept_bytes() { return 0; }
    /// Frees what forward and backward left, so that the next sample does not pay for it.
    virtual void release_forward() = 0;
    virtual void release_backward() = 0;
};

/// Names of the parts that a config has, in the order of the layer; "layer" is the last.
/// The dispatcher is none where rows are padded for quantization.
std::vector<std::string> part_names(const MoEConfig& config);

/// `spec` says who supplies each component; a component's part looks at its own alone.
/// The reference must outlive the part.
std::unique_ptr<Part> make_part(const std::string& name, const ModuleSpec& spec,
                                const Reference& reference);

}  // namespace moe::bench
