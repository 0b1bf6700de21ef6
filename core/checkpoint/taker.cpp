#include "core/checkpoint/taker.h"

#include <algorithm>

#include "core/error.h"

namespace moe::checkpoint {

const Tensors& Taker::part(Role role) {
    done_.push_back(role);
    return block_.parts.at(role);
}

const Tensors& Taker::required(Role role, const std::string& what) {
    if (!block_.has(role)) {
        const std::string& weight = block_.parts.at(Role::router_weight).names[0];
        reject("the block of " + source_.where(weight), "no " + what,
               "the block must have one");
    }
    return part(role);
}

const std::string& Taker::single(Role role, const std::string& what) {
    const Tensors& tensors = required(role, what);
    if (tensors.per_expert)
        reject(source_.where(tensors.names[0]), "of one expert",
               "must be of all of them");
    return tensors.names[0];
}

Tensor Taker::take(const std::string& name, const Shape& shape, const Shape& other) {
    const Shape found = source_.shape(name);
    if (found != shape && (other.empty() || found != other))
        reject(source_.where(name), "shape " + to_string(found),
               "must have shape " + to_string(shape));
    const std::string dtype = source_.dtype(name);
    if (dtype != "F64" && dtype != "F32" && dtype != "BF16")
        reject(source_.where(name), dtype,
               dtype == "F16" ? "must be F64, F32 or BF16: fp16 is not read"
                              : "must be F64, F32 or BF16: dequantise it first");
    names_.push_back(name);
    return source_.tensor(name);
}

Tensor Taker::take_integers(const std::string& name, const Shape& shape) {
    if (source_.shape(name) != shape)
        reject(source_.where(name), "shape " + to_string(source_.shape(name)),
               "must have shape " + to_string(shape));
    names_.push_back(name);
    return source_.tensor(name);
}

Tensor Taker::make(const Shape& shape, DType dtype) {
    copied_ = true;
    return Tensor::empty(shape, dtype);
}

void Taker::require_nothing_left() const {
    for (const auto& [role, tensors] : block_.parts)
        if (std::count(done_.begin(), done_.end(), role) == 0)
            reject(source_.where(tensors.names[0]), "unexpected",
                   "the layer of this config has no such tensor");
}

}  // namespace moe::checkpoint
