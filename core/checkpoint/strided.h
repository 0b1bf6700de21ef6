/// @file
/// Copies of matrices whose elements lie otherwise: transposed, or every second row.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe::checkpoint {

/// A matrix in somebody's memory; strides in elements.
struct Strided {
    std::byte* bytes;
    std::int64_t row_stride, column_stride;
};

/// Copies rows x columns elements of `size` bytes.
void copy_strided(const Strided& target, const Strided& source, std::int64_t rows,
                  std::int64_t columns, std::size_t size);

}  // namespace moe::checkpoint
