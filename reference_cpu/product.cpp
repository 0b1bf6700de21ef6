// product.cpp: a matrix product, tile by tile in registers.

#include "reference_cpu/product.h"

#include <algorithm>

#pragma GCC diagnostic ignored "-Wignored-attributes"  // templates of vector registers

namespace moe::cpu {
namespace {

namespace vec = Eigen::internal;  // a packet is a vector register

// TUTORIAL: a processor multiplies faster than it loads. A tile of the product stays in
// registers: a step in k loads kRows + kPackets values and makes kRows * kPackets
// products of them. Three quarters of the registers hold sums; the rest, a step's
// factors.
constexpr int kRows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 8 : 4;
constexpr int kPackets = 3;
// Terms that a tile adds up in registers before the sum goes to memory. A strip of the
// right factor, kDepth long and a tile wide, then stays in a first-level cache, and
// kStrips of them in a second-level cache, for all rows of the left one.
constexpr std::int64_t kDepth = 256;
constexpr std::int64_t kStrips = 16;

template <typename Scalar>
struct Whole {
    using Packet = typename vec::packet_traits<Scalar>::type;
    static constexpr int kLanes = vec::unpacket_traits<Packet>::size;
};
/// Half as wide, or as wide where there is nothing narrower.
template <typename Scalar>
struct Half {
    using Packet = typename vec::unpacket_traits<typename Whole<Scalar>::Packet>::half;
    static constexpr int kLanes = vec::unpacket_traits<Packet>::size;
};

/// Columns [0, count) of `source`, row after row, `width` apart; zeros fill the rest.
/// @tparam Vector  Whole or Half, whose lanes divide a full width
template <template <typename> typename Vector, typename Scalar>
void copy_strip(const Strided<const Scalar>& source, std::int64_t count,
                std::int64_t width, Scalar* strip) {
    using Packet = typename Vector<Scalar>::Packet;
    constexpr int kLanes = Vector<Scalar>::kLanes;
    const std::int64_t step = source.column_stride;
    const bool is_full = count == width && width % kLanes == 0;
    std::int64_t row = 0;
    if (is_full && source.row_stride == 1)  // squares, turned
        for (std::int64_t column = 0; column < width; column += kLanes)
            for (row = 0; row + kLanes <= source.rows; row += kLanes) {
                vec::PacketBlock<Packet, kLanes> square;
                for (int i = 0; i < kLanes; ++i)
                    square.packet[i] =
                        vec::ploadu<Packet>(source.data + row + (column + i) * step);
                vec::ptranspose(square);
                for (int i = 0; i < kLanes; ++i)
                    vec::pstoreu(strip + (row + i) * width + column, square.packet[i]);
            }
    for (; row < source.rows; ++row) {
        const Scalar* from = source.data + row * source.row_stride;
        Scalar* to = strip + row * width;
        if (is_full && step == 1) {
            for (std::int64_t column = 0; column < width; column += kLanes)
                vec::pstoreu(to + column, vec::ploadu<Packet>(from + column));
            continue;
        }
        for (std::int64_t column = 0; column < count; ++column)
            to[column] = from[column * step];
        std::fill(to + count, to + width, Scalar(0));
    }
}

//! [multiply_tile]
/// A tile of kRows x (Packets packets) of out, += unless it is the first part of its sum.
/// @param left   (kRows, depth), strided
/// @param strip  (depth, a tile wide), contiguous
template <int Packets, typename Scalar>
void multiply_tile(const Strided<const Scalar>& left, const Scalar* strip, bool is_first,
                   Scalar* out, std::int64_t out_stride) {
    using Packet = typename Whole<Scalar>::Packet;
    constexpr int kLanes = Whole<Scalar>::kLanes;
    Packet sum[kRows][Packets];
#pragma GCC unroll 8
    for (auto& row : sum)
#pragma GCC unroll 3
        for (Packet& packet : row) packet = vec::pset1<Packet>(Scalar(0));

    const Scalar* a = left.data;
    for (std::int64_t k = 0; k < left.columns; ++k) {
        Packet b[Packets];
#pragma GCC unroll 3
        for (int j = 0; j < Packets; ++j) b[j] = vec::pload<Packet>(strip + j * kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            const Packet a_i = vec::pset1<Packet>(a[i * left.row_stride]);
#pragma GCC unroll 3
            for (int j = 0; j < Packets; ++j)
                sum[i][j] = vec::pmadd(a_i, b[j], sum[i][j]);
        }
        a += left.column_stride;
        strip += Packets * kLanes;
    }

#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < Packets; ++j) {
            Scalar* to = out + i * out_stride + j * kLanes;
            const Packet& part = sum[i][j];
            vec::pstoreu(to, is_first ? part : vec::padd(vec::ploadu<Packet>(to), part));
        }
}
//! [multiply_tile]

/// As multiply_tile(), of which only (rows, columns) belong to out.
template <int Packets, typename Scalar>
void multiply_part(const Strided<const Scalar>& left, const Scalar* strip, bool is_first,
                   Scalar* out, std::int64_t out_stride, std::int64_t rows,
                   std::int64_t columns) {
    constexpr std::int64_t kWidth = Packets * Whole<Scalar>::kLanes;
    if (rows == kRows && columns == kWidth)
        return multiply_tile<Packets>(left, strip, is_first, out, out_stride);
    Scalar tile[kRows * kWidth];
    multiply_tile<Packets>(left, strip, true, tile, kWidth);
    for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j) {
            Scalar& element = out[i * out_stride + j];
            element = is_first ? tile[i * kWidth + j] : element + tile[i * kWidth + j];
        }
}

template <typename Scalar>
Strided<const Scalar> block(const Strided<const Scalar>& of, std::int64_t row,
                            std::int64_t column, std::int64_t rows,
                            std::int64_t columns) {
    return {of.data + row * of.row_stride + column * of.column_stride, rows, columns,
            of.row_stride, of.column_stride};
}

template <typename Scalar>
Strided<const Scalar> transposed(const Strided<const Scalar>& of) {
    return {of.data, of.columns, of.rows, of.column_stride, of.row_stride};
}

}  // namespace

template <typename Scalar>
void multiply(const Strided<const Scalar>& left, const Strided<const Scalar>& right,
              const Strided<Scalar>& out) {
    constexpr std::int64_t kLanes = Whole<Scalar>::kLanes;
    constexpr std::int64_t kColumns = kPackets * kLanes;
    // A thread's own, kept: fresh memory costs a page fault every 4 KiB.
    thread_local Eigen::Array<Scalar, Eigen::Dynamic, 1> kept(
        kDepth * (kStrips * kColumns + kRows));
    Scalar* const strips = kept.data();
    Scalar* const left_strip = strips + kDepth * kStrips * kColumns;

    for (std::int64_t first = 0; first < out.columns; first += kStrips * kColumns) {
        const std::int64_t end = std::min(first + kStrips * kColumns, out.columns);
        for (std::int64_t k = 0; k < left.columns; k += kDepth) {
            const std::int64_t depth = std::min(kDepth, left.columns - k);
            for (std::int64_t j = first; j < end; j += kColumns) {
                const std::int64_t columns = std::min(kColumns, end - j);
                copy_strip<Whole>(block(right, k, j, depth, columns), columns,
                                  (columns + kLanes - 1) / kLanes * kLanes,
                                  strips + (j - first) * depth);
            }
            for (std::int64_t i = 0; i < out.rows; i += kRows) {
                const std::int64_t rows = std::min<std::int64_t>(kRows, out.rows - i);
                auto a = block(left, i, k, rows, depth);
                if (rows < kRows || left.column_stride != 1) {
                    copy_strip<Half>(transposed(a), rows, kRows, left_strip);
                    a = {left_strip, kRows, depth, 1, kRows};
                }
                for (std::int64_t j = first; j < end; j += kColumns) {
                    const std::int64_t columns = std::min(kColumns, end - j);
                    const Scalar* strip = strips + (j - first) * depth;
                    Scalar* to = out.data + i * out.row_stride + j;
                    const auto part = columns > 2 * kLanes ? multiply_part<3, Scalar>
                                      : columns > kLanes   ? multiply_part<2, Scalar>
                                                           : multiply_part<1, Scalar>;
                    part(a, strip, k == 0, to, out.row_stride, rows, columns);
                }
            }
        }
    }
}

template void multiply<float>(const Strided<const float>&, const Strided<const float>&,
                              const Strided<float>&);
template void multiply<double>(const Strided<const double>&, const Strided<const double>&,
                               const Strided<double>&);

}  // namespace moe::cpu
