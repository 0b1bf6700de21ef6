#include "core/checkpoint/strided.h"

#include <algorithm>
#include <cstring>

namespace moe::checkpoint {
namespace {

// TUTORIAL: a transpose reads rows and writes columns, so that one of both jumps through
// memory. In squares of 32 the lines of both fit the cache until all of them is used.
constexpr std::int64_t kSquare = 32;

template <std::size_t Size>
void copy_squares(const Strided& target, const Strided& source, std::int64_t rows,
                  std::int64_t columns) {
    for (std::int64_t r0 = 0; r0 < rows; r0 += kSquare)
        for (std::int64_t c0 = 0; c0 < columns; c0 += kSquare)
            for (std::int64_t r = r0; r < std::min(r0 + kSquare, rows); ++r)
                for (std::int64_t c = c0; c < std::min(c0 + kSquare, columns); ++c)
                    std::memcpy(
                        target.bytes +
                            (r * target.row_stride + c * target.column_stride) * Size,
                        source.bytes +
                            (r * source.row_stride + c * source.column_stride) * Size,
                        Size);
}

}  // namespace

void copy_strided(const Strided& target, const Strided& source, std::int64_t rows,
                  std::int64_t columns, std::size_t size) {
    if (target.column_stride == 1 && source.column_stride == 1) {
        for (std::int64_t r = 0; r < rows; ++r)
            std::memcpy(target.bytes + r * target.row_stride * size,
                        source.bytes + r * source.row_stride * size, columns * size);
        return;
    }
    switch (size) {
        case 1: return copy_squares<1>(target, source, rows, columns);
        case 2: return copy_squares<2>(target, source, rows, columns);
        case 4: return copy_squares<4>(target, source, rows, columns);
        default: return copy_squares<8>(target, source, rows, columns);
    }
}

}  // namespace moe::checkpoint
