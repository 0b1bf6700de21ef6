/// @file
/// Arrays of Python and tensors of ours, as one memory. Nothing is copied here: what
/// cannot be shared as it lies is refused, and Tensor.copy() is how to ask for a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "core/tensor.h"

namespace moe::python {

namespace nb = nanobind;

/// moe.Tensor: a tensor, and whether Python may write to it.
struct Array {
    Tensor tensor;
    bool read_only = false;
};

/// The object's memory as a tensor that keeps the object: a moe.Tensor, or any array with
/// __dlpack__ or a buffer. InputError, naming `field`, for one that is not dense and
/// row-major, that has a dtype which DType lacks, that wants a gradient, that lies on a
/// device this build has no kernels for, or that is no array.
/// Booleans are uint8 here. A bf16 array of numpy is one of the package ml_dtypes.
Array array_from(nb::handle object, const std::string& field);

/// The same, where None is the undefined tensor.
Tensor tensor_or_none(nb::handle object, const std::string& field);

/// array_from(), for what is only read.
inline Tensor tensor_from(nb::handle object, const std::string& field) {
    return array_from(object, field).tensor;
}

/// moe.Tensor; the undefined tensor is None.
nb::object to_python(const Tensor& tensor);
nb::dict to_python(const TensorMap& tensors);

/// A dict of arrays, by name.
TensorMap tensors_from(nb::handle dict, const std::string& field);

/// Defines moe.Tensor.
void bind_arrays(nb::module_& module);

}  // namespace moe::python
