#include "python/bindings/arrays.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "core/error.h"
#include "core/transfer.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"

namespace moe::python {
namespace {

std::string name_of_type(nb::handle object) {
    return nb::cast<std::string>(object.type().attr("__name__"));
}

bool is_true(nb::handle object, const char* attribute) {
    return nb::hasattr(object, attribute) && nb::cast<bool>(object.attr(attribute));
}

/// Whether numpy has it as bf16, by the package ml_dtypes: an element type that neither
/// DLPack nor buffers have a word for there.
bool is_numpy_bf16(nb::handle object) {
    if (nb::hasattr(object, "__dlpack_device__") && nb::hasattr(object, "dtype") &&
        nb::hasattr(object, "__array_interface__"))
        return nb::cast<std::string>(object.attr("dtype").attr("name")) == "bfloat16";
    return false;
}

DType dtype_of_array(const std::string& field, nb::dlpack::dtype dtype) {
    using Code = nb::dlpack::dtype_code;
    const auto is = [&](Code code, int bits) {
        return dtype.code == std::uint8_t(code) && dtype.bits == bits && dtype.lanes == 1;
    };
    if (is(Code::Float, 64)) return DType::f64;
    if (is(Code::Float, 32)) return DType::f32;
    if (is(Code::Bfloat, 16)) return DType::bf16;
    if (is(Code::Int, 64)) return DType::i64;
    if (is(Code::Int, 32)) return DType::i32;
    if (is(Code::UInt, 8) || is(Code::Bool, 8)) return DType::u8;
    const char* kind = dtype.code == std::uint8_t(Code::Float)    ? "float"
                       : dtype.code == std::uint8_t(Code::Int)    ? "int"
                       : dtype.code == std::uint8_t(Code::UInt)   ? "uint"
                       : dtype.code == std::uint8_t(Code::Bfloat) ? "bfloat"
                                                                  : "code ";
    const std::string name =
        kind == std::string("code ")
            ? fmt::format("DLPack code {}, {} bits", dtype.code, dtype.bits)
            : fmt::format("{}{}", kind, dtype.bits);
    reject(field, "dtype " + name,
           "must be float64, float32, bfloat16, int64, int32, uint8 or bool; convert it "
           "by name first");
}

nb::dlpack::dtype dlpack_dtype(DType dtype) {
    using Code = nb::dlpack::dtype_code;
    const auto make = [](Code code, std::uint8_t bits) {
        return nb::dlpack::dtype{std::uint8_t(code), bits, 1};
    };
    switch (dtype) {
        case DType::f64: return make(Code::Float, 64);
        case DType::f32: return make(Code::Float, 32);
        case DType::bf16: return make(Code::Bfloat, 16);
        case DType::i64: return make(Code::Int, 64);
        case DType::i32: return make(Code::Int, 32);
        case DType::u8: break;
    }
    return make(Code::UInt, 8);
}

MemorySpace space_of_array(const std::string& field, int device_type, int device_id) {
    using namespace nb::device;
    if (device_type == cpu::value || device_type == cuda_host::value)
        return MemorySpace::host;
    if (device_type != cuda::value && device_type != cuda_managed::value)
        reject(field, fmt::format("device type {}", device_type),
               "must be on the CPU or on a CUDA device");
    if (gpu::is_emulated())
        reject(field, fmt::format("cuda:{}", device_id),
               "must be on the CPU: this module was built without CUDA; .cpu() copies");
    return MemorySpace::device;
}

void require_row_major(const std::string& field, const nb::ndarray<nb::ro>& array) {
    std::int64_t dense = 1;
    bool ok = true;
    for (int axis = int(array.ndim()) - 1; axis >= 0; --axis) {
        const auto size = std::int64_t(array.shape(axis));
        if (size != 1 && array.stride(axis) != dense) ok = false;
        dense *= size;
    }
    if (ok || dense == 0) return;
    Shape strides;
    for (std::size_t axis = 0; axis < array.ndim(); ++axis)
        strides.push_back(array.stride(axis));
    reject(field, "strides " + to_string(strides),
           "must be dense and row-major; numpy.ascontiguousarray() or .contiguous() "
           "copies");
}

/// The array under a name for its elements that the exporter knows.
struct Exported {
    nb::ndarray<nb::ro> array;
    bool read_only = false;
};
Exported exported(nb::handle object, const std::string& field) {
    nb::ndarray<> writable;
    if (nb::try_cast(object, writable, false))
        return {nb::ndarray<nb::ro>(writable), false};
    nb::ndarray<nb::ro> read_only;
    if (nb::try_cast(object, read_only, false)) return {read_only, true};
    reject(field, name_of_type(object),
           "must be an array that shares its memory: of numpy, torch, or any with "
           "__dlpack__");
}

nb::ndarray<> to_ndarray(const Array& array) {
    const TensorView& view = array.tensor.view();
    std::vector<std::size_t> shape(view.shape.begin(), view.shape.end());
    const bool device = view.space == MemorySpace::device;
    if (device && gpu::is_emulated())
        reject("tensor", "device memory of the CPU executor",
               "cannot be shared; .copy() is on the host");
    nb::capsule owner(new Tensor(array.tensor),
                      [](void* tensor) noexcept { delete static_cast<Tensor*>(tensor); });
    const int type = device ? nb::device::cuda::value : nb::device::cpu::value;
    const auto dtype = dlpack_dtype(view.dtype);
    if (array.read_only)
        return nb::ndarray<>(nb::ndarray<nb::ro>(view.bytes, shape.size(), shape.data(),
                                                 owner, nullptr, dtype, type));
    return nb::ndarray<>(view.bytes, shape.size(), shape.data(), owner, nullptr, dtype,
                         type);
}

nb::object to_numpy(const Array& array) {
    if (array.tensor.space() == MemorySpace::device)
        reject("tensor", "device memory", "must be on the host; .copy() copies it there");
    Array shown = array;
    nb::object bf16;
    if (array.tensor.dtype() == DType::bf16) {
        try {
            bf16 = nb::module_::import_("ml_dtypes").attr("bfloat16");
        } catch (nb::python_error&) {
            reject("tensor", "dtype bf16",
                   "numpy has none without the package ml_dtypes; .copy('fp32') copies");
        }
    }
    // As 16-bit integers on their way: numpy's DLPack has no bf16 either.
    nb::object result;
    if (bf16.is_valid()) {
        const TensorView& view = array.tensor.view();
        std::vector<std::size_t> shape(view.shape.begin(), view.shape.end());
        nb::capsule owner(new Tensor(array.tensor), [](void* tensor) noexcept {
            delete static_cast<Tensor*>(tensor);
        });
        nb::ndarray<nb::numpy, std::uint16_t> bits(
            static_cast<std::uint16_t*>(view.bytes), shape.size(), shape.data(), owner);
        result = nb::cast(bits).attr("view")(bf16);
    } else {
        nb::ndarray<> plain = to_ndarray({array.tensor, false});
        result = nb::cast(nb::ndarray<nb::numpy>(plain));
    }
    if (array.read_only) result.attr("setflags")(nb::arg("write") = false);
    return result;
}

/// An object that has what DLPack asks for.
nb::object exporter(const Array& array) {
    return nb::cast(nb::ndarray<nb::array_api>(to_ndarray(array)));
}

nb::object to_dlpack(const Array& array, nb::kwargs arguments) {
    if (array.read_only &&
        (!arguments.contains("max_version") || arguments["max_version"].is_none()))
        reject("tensor", "read-only",
               "a reader of DLPack before 1.0 would take it as writable; .copy() copies");
    // The layer's kernels ran in the default stream. A reader's own waits for that.
    if (array.tensor.space() == MemorySpace::device && arguments.contains("stream") &&
        !arguments["stream"].is_none()) {
        const auto stream = nb::cast<std::intptr_t>(arguments["stream"]);
        if (stream > 2) gpu::wait_for(reinterpret_cast<cudaStream_t>(stream), nullptr);
    }
    return exporter(array).attr("__dlpack__")(**arguments);
}

Array copied(const Array& array, const std::optional<std::string>& dtype) {
    const Tensor& source = array.tensor;
    const Placement target = {MemorySpace::host,
                              dtype ? parse_dtype("dtype", *dtype) : source.dtype()};
    if (!dtype && !is_floating(source.dtype())) {
        Tensor result = Tensor::empty(source.shape(), source.dtype());
        copy(result.view(), source.view());
        return {result};
    }
    if (dtype && !is_floating(source.dtype()))
        reject("dtype", *dtype,
               "must be left out: the tensor is " + to_string(source.dtype()));
    return {transfer(source.view(), target)};
}

}  // namespace

Array array_from(nb::handle object, const std::string& field) {
    if (Array* ours = nullptr; nb::try_cast(object, ours, false) && ours != nullptr)
        return *ours;
    if (object.is_none()) reject(field, "None", "must be an array");
    if (is_true(object, "requires_grad"))
        reject(field, "requires_grad",
               "must not want a gradient here: .detach() shares it without, and "
               "moe.torch.MoELayer has gradients");
    const bool numpy_bf16 = is_numpy_bf16(object);
    nb::object as_bits;
    if (numpy_bf16) as_bits = object.attr("view")("uint16");
    const Exported given = exported(numpy_bf16 ? as_bits : object, field);

    TensorView view;
    view.dtype = numpy_bf16 ? DType::bf16 : dtype_of_array(field, given.array.dtype());
    view.space =
        space_of_array(field, given.array.device_type(), given.array.device_id());
    for (std::size_t axis = 0; axis < given.array.ndim(); ++axis)
        view.shape.push_back(std::int64_t(given.array.shape(axis)));
    require_row_major(field, given.array);
    view.bytes = const_cast<void*>(given.array.data());
    if (view.numel() > 0 &&
        reinterpret_cast<std::uintptr_t>(view.bytes) % size_of(view.dtype) != 0)
        reject(field, fmt::format("at {}", view.bytes),
               fmt::format("must lie at a multiple of {} bytes; a copy does",
                           size_of(view.dtype)));
    // Python's object lives as long as a tensor looks at it, and goes in Python's hands.
    auto* kept = new nb::ndarray<nb::ro>(given.array);
    std::shared_ptr<void> owner(kept, [](void* array) {
        const nb::gil_scoped_acquire gil;
        if (nb::is_alive()) delete static_cast<nb::ndarray<nb::ro>*>(array);
    });
    return {Tensor::borrow(view, std::move(owner)), given.read_only};
}

Tensor tensor_or_none(nb::handle object, const std::string& field) {
    return object.is_none() ? Tensor() : tensor_from(object, field);
}

nb::object to_python(const Tensor& tensor) {
    return tensor.defined() ? nb::cast(Array{tensor}) : nb::none();
}

nb::dict to_python(const TensorMap& tensors) {
    nb::dict result;
    for (const auto& [name, tensor] : tensors) result[name.c_str()] = to_python(tensor);
    return result;
}

TensorMap tensors_from(nb::handle dict, const std::string& field) {
    if (!nb::isinstance<nb::dict>(dict))
        reject(field, name_of_type(dict), "must be a dict of arrays by name");
    TensorMap tensors;
    for (auto [name, value] : nb::borrow<nb::dict>(dict)) {
        if (!nb::isinstance<nb::str>(name))
            reject(field, name_of_type(name), "every key must be a name");
        const auto text = nb::cast<std::string>(name);
        tensors[text] = tensor_from(value, text);
    }
    return tensors;
}

void bind_arrays(nb::module_& module) {
    nb::class_<Array>(module, "Tensor",
                      R"(A dense row-major array, shared with whoever made it.

Takes part in DLPack: ``torch.from_dlpack(t)`` and ``numpy.asarray(t)`` look at the same
memory, and ``Tensor(array)`` looks at that of numpy, torch or any array with
``__dlpack__``. The memory lives as long as anybody looks at it.

Raises InputError for an array that cannot be shared: one that is not dense and row-major,
of another dtype than float64, float32, bfloat16, int64, int32, uint8 and bool, one that
wants a gradient, or on a device that this build has no kernels for. Nothing is copied but
by ``copy()``.)")
        .def(
            "__init__",
            [](Array* self, nb::handle array) {
                new (self) Array(array_from(array, "array"));
            },
            nb::arg("array").none())
        .def_prop_ro(
            "shape",
            [](const Array& self) {
                nb::list sizes;
                for (std::int64_t size : self.tensor.shape()) sizes.append(size);
                return nb::tuple(sizes);
            },
            nb::sig("def shape(self) -> tuple[int, ...]"), "Sizes, slowest axis first.")
        .def_prop_ro(
            "ndim", [](const Array& self) { return self.tensor.shape().size(); },
            "Number of axes.")
        .def("__len__",
             [](const Array& self) {
                 if (self.tensor.shape().empty())
                     throw nb::type_error("len() of a tensor without axes");
                 return self.tensor.dim(0);
             })
        .def_prop_ro(
            "dtype", [](const Array& self) { return to_string(self.tensor.dtype()); },
            "\"fp64\", \"fp32\", \"bf16\", \"int64\", \"int32\" or \"uint8\".")
        .def_prop_ro(
            "space",
            [](const Array& self) {
                return self.tensor.space() == MemorySpace::host ? "host" : "device";
            },
            "\"host\" or \"device\"; without a GPU the device's memory is the "
            "executor's.")
        .def_ro("read_only", &Array::read_only, "True of what may not be written.")
        .def("numpy", &to_numpy, nb::sig("def numpy(self) -> numpy.ndarray"),
             "The same memory as numpy sees it. InputError for a tensor on a device, and "
             "for bf16 unless the package ml_dtypes is there.")
        .def("copy", &copied, nb::arg("dtype") = nb::none(),
             "A copy on the host; of floating-point values in `dtype` (\"fp64\", "
             "\"fp32\", "
             "\"bf16\").")
        .def(
            "__array__",
            [](const Array& self, nb::object dtype, nb::object copy) {
                nb::object array = to_numpy(self);
                if (!dtype.is_none())
                    array = array.attr("astype")(dtype, nb::arg("copy") = false);
                if (!copy.is_none() && nb::cast<bool>(copy)) array = array.attr("copy")();
                return array;
            },
            nb::arg("dtype") = nb::none(), nb::arg("copy") = nb::none(),
            nb::sig("def __array__(self, dtype: object = None, copy: bool | None = None) "
                    "-> numpy.ndarray"))
        .def("__dlpack__", &to_dlpack,
             nb::sig("def __dlpack__(self, **kwargs: object) -> types.CapsuleType"))
        .def(
            "__dlpack_device__",
            [](const Array& self) { return exporter(self).attr("__dlpack_device__")(); },
            nb::sig("def __dlpack_device__(self) -> tuple[int, int]"))
        .def("__repr__", [](const Array& self) {
            return fmt::format(
                "moe.Tensor(shape={}, dtype={}, space={}{})",
                to_string(self.tensor.shape()), to_string(self.tensor.dtype()),
                self.tensor.space() == MemorySpace::host ? "host" : "device",
                self.read_only ? ", read-only" : "");
        });
}

}  // namespace moe::python
