/// @file
/// Tensor maps: what the Tensor Memory Accelerator must know of a tensor in global
/// memory. Source: CUDA Driver API, "Tensor Map Object Management".
#pragma once

#include <cuda.h>

#include <cstdint>
#include <vector>

namespace moe::gpu {

/// A tensor whose boxes are copied by ptx::tma_load_2d() and its like. All lists begin
/// with the innermost axis, which is contiguous.
struct TensorMapShape {
    CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    std::vector<std::uint64_t> sizes = {};  ///< elements
    std::vector<std::uint32_t> box = {};    ///< elements, each up to 256
    /// Bytes, those of the innermost left out. Empty: the tensor is dense.
    std::vector<std::uint64_t> strides = {};
    CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
};

/// Kernels take it as `const __grid_constant__ CUtensorMap`.
/// @param base  device memory, aligned to 16 bytes
/// DeviceError where the driver has no such maps, or refuses this one.
CUtensorMap make_tensor_map(const void* base, const TensorMapShape& shape);

}  // namespace moe::gpu
