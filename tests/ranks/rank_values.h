/// @file
/// What the ranks of a scenario bring, and how they judge what they get.
#pragma once

#include <fmt/format.h>

#include <numeric>
#include <string>
#include <vector>

#include "core/transfer.h"
#include "distributed/communicators/communicator.h"

namespace moe::test {

using distributed::Splits;
using Values = std::vector<double>;

inline constexpr std::int64_t kWidth = 5;  ///< elements of a row

inline void expect(bool good, const std::string& what) {
    if (!good) throw std::runtime_error("expected " + what);
}

inline void expect_values(const TensorView& got, const Values& expected,
                          const std::string& what) {
    const Values values = to_doubles(got);
    expect(values.size() == expected.size(), what + ": other number of elements");
    for (std::size_t i = 0; i < values.size(); ++i)
        expect(values[i] == expected[i], fmt::format("{}: element {} is {}, not {}", what,
                                                     i, values[i], expected[i]));
}

/// Element i of what `rank` brings: exact in every dtype, as are sums over eight ranks in
/// all but bf16.
inline double value(int rank, std::int64_t i) {
    return double((rank * 37 + i * 11) % 64 - 20);
}

inline Tensor tensor_of(const Values& values, DType dtype, MemorySpace space,
                        std::int64_t width = kWidth) {
    const Shape shape = {std::int64_t(values.size()) / width, width};
    const auto as = [&](auto zero) {
        return transfer(Tensor::from(shape, std::vector<decltype(zero)>(values.begin(),
                                                                        values.end())),
                        {space, dtype});
    };
    if (dtype == DType::i64) return as(std::int64_t{});
    if (dtype == DType::i32) return as(std::int32_t{});
    return as(double{});
}

/// Rows [first, first + rows) of what `rank` brings.
inline Values values_of(int rank, std::int64_t rows, std::int64_t first = 0) {
    Values values;
    for (std::int64_t i = first * kWidth; i < (first + rows) * kWidth; ++i)
        values.push_back(value(rank, i));
    return values;
}

/// The values as the dtype holds them.
inline Values rounded(const Values& values, DType dtype) {
    return to_doubles(tensor_of(values, dtype, MemorySpace::host));
}

/// Memory that holds what no collective leaves.
inline Tensor untouched(std::int64_t rows, DType dtype, MemorySpace space) {
    return tensor_of(Values(rows * kWidth, 99.0), dtype, space);
}

inline void append(Values& target, const Values& more) {
    target.insert(target.end(), more.begin(), more.end());
}

inline std::int64_t total(const Splits& rows) {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

/// Rows by rank that an uneven collective has to master.
inline std::vector<Splits> interesting_splits(int size) {
    std::vector<Splits> all;
    Splits uneven(size), one_empty(size, 2), only_last(size, 0);
    for (int r = 0; r < size; ++r) uneven[r] = (r * 5 + 2) % 7;
    one_empty[size / 2] = 0;
    only_last[size - 1] = 3;
    return {uneven, one_empty, only_last, Splits(size, 0), Splits(size, 3)};
}

// Scenarios of parts of the ranks, and of what lies beside collectives:
// rank_group_scenarios.cpp.
void split(distributed::Communicator& world, MemorySpace space);
void independent_groups(distributed::Communicator& world, MemorySpace space);
void peer_memory(distributed::Communicator& world, MemorySpace space);
void ledger(distributed::Communicator& world, MemorySpace space);

}  // namespace moe::test
