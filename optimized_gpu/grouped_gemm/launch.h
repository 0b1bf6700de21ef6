/// @file
/// How products of groups are started: tiles, and copies as wide as rows allow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/tensor.h"
#include "optimized_gpu/grouped_gemm/tile.h"

namespace moe::optimized {

inline unsigned tiles_of(std::int64_t length) {
    return unsigned((length + kLines - 1) / kLines);
}

/// Rows of x, or of what gathers from it.
inline std::int64_t num_rows_of(const Tensor& x, const Tensor& row_ids) {
    return row_ids.defined() ? row_ids.dim(0) : x.dim(0);
}

/// As many tiles of `lines` rows as can be needed, wherever groups begin.
inline unsigned most_row_tiles(std::int64_t rows, std::int64_t groups,
                               int lines = kLines) {
    return unsigned(rows / lines + std::min(rows, groups));
}

/// Where data begin, as a width: how far past a multiple of 16 bytes, in bf16 elements,
/// and 8. It limits copies as a row's width does, so the two may be joined by |.
inline std::int64_t begin_of(const void* data) {
    return kChunk + std::int64_t(reinterpret_cast<std::uintptr_t>(data) / 2 % kChunk);
}

/// Calls run(std::integral_constant) with the most elements that one copy may move.
template <typename Run>
void with_vector(std::int64_t one_width, std::int64_t other_width, Run run) {
    const std::int64_t both = one_width | other_width;
    if (both % 8 == 0)
        run(std::integral_constant<int, 8>());
    else if (both % 2 == 0)
        run(std::integral_constant<int, 2>());
    else
        run(std::integral_constant<int, 1>());
}

}  // namespace moe::optimized
