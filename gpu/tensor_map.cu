#include "gpu/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "gpu/check.h"

namespace moe::gpu {
namespace {

std::uint64_t bytes_of(CUtensorMapDataType type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
        case CU_TENSOR_MAP_DATA_TYPE_UINT64:
        case CU_TENSOR_MAP_DATA_TYPE_INT64:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
        default: return 4;
    }
}

// TUTORIAL: tensor maps are made by the driver's library, which a program that uses the
// runtime alone does not link; it asks the runtime for the function.
PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess)
        throw DeviceError(
            "cuTensorMapEncodeTiled: the driver has none: it is older than "
            "CUDA 12.0");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

CUtensorMap make_tensor_map(const void* base, const TensorMapShape& shape) {
    static const auto encode = encode_function();
    const std::size_t rank = shape.sizes.size();
    if (rank < 1 || rank > 5 || shape.box.size() != rank ||
        (!shape.strides.empty() && shape.strides.size() != rank - 1))
        throw DeviceError(fmt::format(
            "tensor map: {} sizes, {} box extents, {} strides: must be 1 to 5 sizes, as "
            "many extents, and one stride less or none",
            rank, shape.box.size(), shape.strides.size()));
    std::vector<cuuint64_t> sizes(shape.sizes.begin(), shape.sizes.end());
    std::vector<cuuint64_t> strides(shape.strides.begin(), shape.strides.end());
    std::uint64_t dense = bytes_of(shape.type);
    for (std::size_t axis = 0; shape.strides.empty() && axis + 1 < rank; ++axis)
        strides.push_back(dense *= shape.sizes[axis]);
    const std::vector<cuuint32_t> ones(rank, 1);
    CUtensorMap map = {};
    const CUresult result =
        encode(&map, shape.type, cuuint32_t(rank), const_cast<void*>(base), sizes.data(),
               strides.data(), shape.box.data(), ones.data(),
               CU_TENSOR_MAP_INTERLEAVE_NONE, shape.swizzle,
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        const cudaError_t error = cudaGetLastError();
        throw DeviceError(fmt::format(
            "tensor map of {} axes, base {}, box[0] {} of {} bytes: {} (CUresult {})",
            rank, base, shape.box[0], bytes_of(shape.type),
            error == cudaSuccess ? "refused by the driver" : cudaGetErrorString(error),
            int(result)));
    }
    return map;
}

}  // namespace moe::gpu
