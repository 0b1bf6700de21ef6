/// @file
/// The tensor map: how a tensor lies in global memory, and which boxes of it are copied.
/// Source: CUDA Driver API, "Tensor Map Object Managment".
#pragma once

#include <cuda.h>

#include <cstdint>

#include "hopper/async_proxy.h"

namespace cuda_on_cpu {

inline constexpr int kMaxRank = 3;  ///< of the tensors that the executor copies

/// What the 128 bytes of a CUtensorMap hold here. Axis 0 is the innermost.
struct TensorMap {
    std::uint64_t mark;
    std::byte* base;
    std::uint64_t sizes[kMaxRank];    ///< elements
    std::uint64_t strides[kMaxRank];  ///< bytes; of axis 0, an element
    std::uint32_t box[kMaxRank];      ///< elements
    std::uint8_t rank;
    CUtensorMapDataType type;
    Swizzle swizzle;

    static constexpr std::uint64_t kMark = 0x74656e736f722d6du;
    std::uint32_t element_bytes() const { return std::uint32_t(strides[0]); }
    std::uint32_t box_bytes() const;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

/// The map's contents; a Fault when it is none, or not of that rank.
TensorMap read_map(const void* tensor_map, int rank, const char* what);

/// One row of a box: where it lies in global memory, and the part of it that exists.
struct BoxRow {
    std::byte* global;            ///< its first existing element
    std::uint32_t offset;         ///< bytes from the box's start, before the swizzle
    std::uint32_t bytes;          ///< of the whole row
    std::uint32_t first, length;  ///< bytes of the part that exists; length may be 0
};

/// Calls `visit` for each row of the box whose first element is `corner`.
template <typename Visit>
void for_each_row(const TensorMap& map, const int* corner, Visit visit) {
    const std::int64_t element = map.element_bytes();
    const std::uint32_t row_bytes = map.box[0] * map.element_bytes();
    const std::uint32_t height = map.rank > 1 ? map.box[1] : 1;
    const std::uint32_t depth = map.rank > 2 ? map.box[2] : 1;
    for (std::uint32_t z = 0; z < depth; ++z)
        for (std::uint32_t y = 0; y < height; ++y) {
            const std::int64_t at[] = {corner[0], map.rank > 1 ? corner[1] + y : 0,
                                       map.rank > 2 ? corner[2] + z : 0};
            BoxRow row{nullptr, (z * height + y) * row_bytes, row_bytes, 0, 0};
            bool exists = true;
            for (int axis = 1; axis < map.rank; ++axis)
                exists =
                    exists && at[axis] >= 0 && at[axis] < std::int64_t(map.sizes[axis]);
            const std::int64_t begin = std::max<std::int64_t>(at[0], 0);
            const std::int64_t end =
                std::min(at[0] + std::int64_t(map.box[0]), std::int64_t(map.sizes[0]));
            if (exists && begin < end) {
                row.global = map.base + begin * element;
                for (int axis = 1; axis < map.rank; ++axis)
                    row.global += at[axis] * std::int64_t(map.strides[axis]);
                row.first = std::uint32_t((begin - at[0]) * element);
                row.length = std::uint32_t((end - begin) * element);
            }
            visit(row);
        }
}

}  // namespace cuda_on_cpu
