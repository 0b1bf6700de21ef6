/// @file
/// Rows in groups, each group with a weight of its own, and matrices to multiply.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <vector>

#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

namespace moe::test {
namespace {

/// Small whole numbers, so that their sums are exact in fp32.
struct Matrix {
    std::int64_t rows, columns;
    std::vector<float> values;

    /// @param seed  0: zeros
    Matrix(std::int64_t r, std::int64_t c, std::uint64_t seed = 0) : rows(r), columns(c) {
        for (std::uint64_t i = 0; i < std::uint64_t(r * c); ++i)
            values.push_back(seed == 0 ? 0.0f : float(mixed(i ^ seed << 40) % 5) - 2.0f);
    }
    /// No two rows are alike, whatever their width. Source: SplitMix64.
    static std::uint64_t mixed(std::uint64_t x) {
        x = (x + 1) * 0x9e3779b97f4a7c15u;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        return x ^ x >> 31;
    }
    float& at(std::int64_t row, std::int64_t column) {
        return values[row * columns + column];
    }
    float at(std::int64_t row, std::int64_t column) const {
        return values[row * columns + column];
    }
    Tensor on_device(DType dtype = DType::bf16, Shape shape = {}) const {
        return transfer(
            Tensor::from(shape.empty() ? Shape{rows, columns} : shape, values),
            {MemorySpace::device, dtype});
    }
};

inline Tensor i32_on_device(const std::vector<std::int32_t>& values) {
    return transfer(Tensor::from({std::int64_t(values.size())}, values),
                    {MemorySpace::device, DType::i32});
}

inline std::vector<float> on_host(const Tensor& tensor) {
    const Tensor host = transfer(tensor, {MemorySpace::host, DType::f32});
    return {host.data<float>(), host.data<float>() + host.numel()};
}

inline float rounded(float value, DType dtype) {
    return dtype == DType::bf16 ? float(BFloat16(value)) : value;
}

/// Rows per group, and rows after the last group that belong to nobody: NaN.
struct GroupedRows {
    std::vector<std::int32_t> counts;
    std::int64_t out, in;
    std::int64_t beyond = 3;

    std::vector<std::int32_t> offsets() const {
        std::vector<std::int32_t> result(counts.size() + 1);
        std::partial_sum(counts.begin(), counts.end(), result.begin() + 1);
        return result;
    }
    std::int64_t rows() const { return offsets().back(); }
    std::int64_t all_rows() const { return rows() + beyond; }
    optimized::RowGroups groups() const { return {i32_on_device(offsets())}; }
    std::int64_t num_groups() const { return std::int64_t(counts.size()); }
    Matrix rows_of(std::int64_t width, int seed) const {
        Matrix result(rows() + beyond, width, seed);
        for (std::int64_t i = rows() * width; i < std::int64_t(result.values.size()); ++i)
            result.values[i] = NAN;
        return result;
    }
    Matrix weight() const { return Matrix(num_groups() * out, in, 7); }
    Tensor device_weight() const {
        return weight().on_device(DType::bf16, {num_groups(), out, in});
    }
    /// Calls visit(group, row) for each row of a group.
    template <typename Visit>
    void for_each_row(Visit visit) const {
        for (std::int64_t g = 0; g < num_groups(); ++g)
            for (std::int64_t r = offsets()[g]; r < offsets()[g + 1]; ++r) visit(g, r);
    }
};

inline double activation_of(const optimized::ExpertActivation& activation, double gate) {
    using optimized::ActivationFunction;
    switch (activation.function) {
        case ActivationFunction::silu: return gate / (1.0 + std::exp(-gate));
        case ActivationFunction::quick_gelu:
            return gate / (1.0 + std::exp(-1.702 * gate));
        case ActivationFunction::gelu:
            return 0.5 * gate * std::erfc(-gate / std::sqrt(2.0));
        case ActivationFunction::gelu_tanh: {
            const double cubed = gate * gate * gate;
            const double u =
                std::sqrt(2.0 / std::numbers::pi) * (gate + 0.044715 * cubed);
            return 0.5 * gate * (1.0 + std::tanh(u));
        }
        case ActivationFunction::squared_relu: return gate > 0.0 ? gate * gate : 0.0;
    }
    return NAN;
}

/// The executor's fresh memory is NaN, so it shows what was left as it was.
inline void expect_left(const GroupedRows& rows, const std::vector<float>& got) {
    if (!gpu::is_emulated() || rows.beyond == 0) return;
    const std::int64_t width = std::int64_t(got.size()) / rows.all_rows();
    for (std::size_t i = rows.rows() * width; i < got.size(); ++i)
        ASSERT_TRUE(std::isnan(got[i])) << "element " << i;
}

}  // namespace
}  // namespace moe::test
