#include "bench/moe_c_arrays.h"

#include <cuda_runtime.h>

#include <array>

#include "core/error.h"

namespace moe::bench {
namespace {

// In the order of the C interface.
constexpr std::array kDTypes = {DType::f64, DType::f32, DType::bf16,
                                DType::i64, DType::i32, DType::u8};
static_assert(MOE_FP64 == 0 && MOE_FP32 == 1 && MOE_BF16 == 2 && MOE_INT64 == 3 &&
              MOE_INT32 == 4 && MOE_UINT8 == 5);
constexpr int kMaxRank = sizeof(moe_array::shape) / sizeof(std::int64_t);

DType dtype_at(const std::string& field, std::int32_t dtype) {
    if (dtype < 0 || std::size_t(dtype) >= kDTypes.size())
        reject(field + " dtype", dtype, "must be from MOE_FP64 to MOE_UINT8");
    return kDTypes[dtype];
}

/// A kernel that reads host memory, or a host that reads a GPU's, ends the process: the
/// caller is told instead.
void check_space(const std::string& field, const TensorView& view) {
    cudaPointerAttributes attributes = {};
    bool on_device = false;
    if (cudaPointerGetAttributes(&attributes, view.bytes) == cudaSuccess) {
        if (attributes.type == cudaMemoryTypeManaged) return;
        on_device = attributes.type == cudaMemoryTypeDevice;
    } else {
        cudaGetLastError();  // no driver: all memory is the host's
    }
    const bool claimed = view.space == MemorySpace::device;
    if (on_device != claimed)
        reject(
            field + " space", claimed ? "device" : "host",
            std::string("the pointer is one of the ") + (on_device ? "device" : "host"));
}

}  // namespace

MemorySpace space_of(const std::string& field, std::int32_t space) {
    if (space != MOE_HOST && space != MOE_DEVICE)
        reject(field, space, "must be MOE_HOST or MOE_DEVICE");
    return space == MOE_HOST ? MemorySpace::host : MemorySpace::device;
}

Tensor borrow_array(const std::string& field, const moe_array* array) {
    if (array == nullptr) reject(field, "null", "must be an array");
    TensorView view;
    view.bytes = array->data;
    view.dtype = dtype_at(field, array->dtype);
    view.space = space_of(field + " space", array->space);
    if (array->rank < 0 || array->rank > kMaxRank)
        reject(field + " rank", array->rank, fmt::format("must be 0 to {}", kMaxRank));
    view.shape.assign(array->shape, array->shape + array->rank);
    for (std::int64_t size : view.shape)
        if (size < 0) reject(field, to_string(view.shape), "sizes must be at least 0");
    if (view.numel() == 0) return Tensor::borrow(view);
    if (view.bytes == nullptr)
        reject(field + " data", "null", "must point at " + to_string(view.shape));
    const auto address = reinterpret_cast<std::uintptr_t>(view.bytes);
    if (address % size_of(view.dtype) != 0)
        reject(field + " data", view.bytes,
               fmt::format("must be a multiple of {}, the size of {}",
                           size_of(view.dtype), to_string(view.dtype)));
    check_space(field, view);
    return Tensor::borrow(view);
}

moe_array array_of(const TensorView& tensor) {
    MOE_CHECK(tensor.shape.size() <= std::size_t(kMaxRank));
    moe_array array = {};
    array.data = tensor.bytes;
    while (kDTypes[array.dtype] != tensor.dtype) ++array.dtype;
    array.space = tensor.space == MemorySpace::host ? MOE_HOST : MOE_DEVICE;
    for (std::int64_t size : tensor.shape) array.shape[array.rank++] = size;
    return array;
}

}  // namespace moe::bench
