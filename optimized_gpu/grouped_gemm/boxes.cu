// boxes.cu: the maps by which TMA finds boxes of operands.

#include "optimized_gpu/grouped_gemm/boxes.h"

namespace moe::optimized {

CUtensorMap operand_map(const __nv_bfloat16* data, std::int64_t groups, std::int64_t rows,
                        std::int64_t width) {
    if (groups == 0 || rows == 0) return {};
    gpu::TensorMapShape shape;
    shape.sizes = {std::uint64_t(width), std::uint64_t(rows), std::uint64_t(groups)};
    static_assert(kDepth == kBoxLines, "a box is the same either way round");
    shape.box = {kDepth, kBoxLines, 1};
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return gpu::make_tensor_map(data, shape);
}

}  // namespace moe::optimized
