#include "reference_cpu/linear.h"

#include <algorithm>

#include "reference_cpu/eigen.h"
#include "reference_cpu/product.h"

namespace moe::cpu {
namespace {

// About as many: large enough that copying strips of a weight (product.cpp) is small
// beside the product itself, small enough that one popular expert still feeds several
// threads.
constexpr std::int64_t kBlockRows = 512;

/// Part of a weight gradient: rows [begin, end) of dW of one group.
std::vector<RowBlock> weight_blocks(std::int64_t num_groups, std::int64_t out) {
    return make_row_groups(std::vector<std::int64_t>(num_groups, out)).blocks;
}

}  // namespace

RowGroups make_row_groups(const std::vector<std::int64_t>& rows_per_group) {
    RowGroups groups;
    groups.offsets.push_back(0);
    for (std::int64_t group = 0; group < std::int64_t(rows_per_group.size()); ++group) {
        const std::int64_t begin = groups.offsets.back();
        const std::int64_t end = begin + rows_per_group[group];
        groups.offsets.push_back(end);
        // Even blocks: a rest of a few rows would pay for a whole weight.
        const std::int64_t rows = end - begin, half = kBlockRows / 2;
        const std::int64_t count =
            rows == 0 ? 0 : std::max<std::int64_t>(1, (rows + half) / kBlockRows);
        for (std::int64_t i = 0; i < count; ++i)
            groups.blocks.push_back(
                {group, begin + rows * i / count, begin + rows * (i + 1) / count});
    }
    return groups;
}

template <typename Scalar>
Tensor linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& row_scale, const RowGroups& groups) {
    Tensor y = Tensor::empty({groups.num_rows(), weight.dim(1)}, dtype_of<Scalar>);
    auto y_rows = as_matrix<Scalar>(y);        // (R, out)
    const auto x_rows = as_matrix<Scalar>(x);  // (R, in)

#pragma omp parallel for schedule(dynamic)
    for (const RowBlock& block : groups.blocks) {
        const std::int64_t count = block.end - block.begin;
        const auto w = matrix_at<Scalar>(weight, block.group);  // (out, in)
        set_product(y_rows.middleRows(block.begin, count),
                    x_rows.middleRows(block.begin, count), w.transpose());
        if (!bias.defined()) continue;
        const auto b = row_at<Scalar>(bias, block.group);  // (out)
        for (std::int64_t row = block.begin; row < block.end; ++row)
            y_rows.row(row) +=
                (row_scale.defined() ? row_scale.data<Scalar>()[row] : Scalar(1)) * b;
    }
    return y;
}

template <typename Scalar>
Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups) {
    Tensor dx = Tensor::empty({groups.num_rows(), weight.dim(2)}, dtype_of<Scalar>);
    auto dx_rows = as_matrix<Scalar>(dx);        // (R, in)
    const auto dy_rows = as_matrix<Scalar>(dy);  // (R, out)

#pragma omp parallel for schedule(dynamic)
    for (const RowBlock& block : groups.blocks) {
        const std::int64_t count = block.end - block.begin;
        set_product(dx_rows.middleRows(block.begin, count),
                    dy_rows.middleRows(block.begin, count),
                    matrix_at<Scalar>(weight, block.group));
    }
    return dx;
}

template <typename Scalar>
Tensor linear_backward_weight(const Tensor& dy, const Tensor& x,
                              const RowGroups& groups) {
    const std::int64_t out = dy.dim(1), in = x.dim(1);
    Tensor dweight = Tensor::empty({groups.num_groups() * out, in}, dtype_of<Scalar>);
    auto dw_rows = as_matrix<Scalar>(dweight);   // (G out, in)
    const auto dy_rows = as_matrix<Scalar>(dy);  // (R, out)
    const auto x_rows = as_matrix<Scalar>(x);    // (R, in)

    // Cut dW, not the sum over rows: every element is then one sum in one order.
    const auto blocks = weight_blocks(groups.num_groups(), out);
#pragma omp parallel for schedule(dynamic)
    for (const RowBlock& block : blocks) {
        const std::int64_t first = groups.offsets[block.group];
        const std::int64_t rows = groups.offsets[block.group + 1] - first;
        const std::int64_t count = block.end - block.begin;
        auto dw = dw_rows.middleRows(block.begin, count);  // (count, in)
        if (rows == 0) {
            dw.setZero();
            continue;
        }
        const std::int64_t column = block.begin - block.group * out;
        set_product(dw, dy_rows.block(first, column, rows, count).transpose(),
                    x_rows.middleRows(first, rows));
    }
    return dweight.reshaped({groups.num_groups(), out, in});
}

template <typename Scalar>
Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const RowGroups& groups) {
    Tensor dbias = Tensor::zeros({groups.num_groups(), dy.dim(1)}, dtype_of<Scalar>);
    const auto dy_rows = as_matrix<Scalar>(dy);  // (R, out)

#pragma omp parallel for schedule(dynamic)
    for (std::int64_t group = 0; group < groups.num_groups(); ++group) {
        auto db = row_at<Scalar>(dbias, group);  // (out)
        for (std::int64_t row = groups.offsets[group]; row < groups.offsets[group + 1];
             ++row)
            db += (row_scale.defined() ? row_scale.data<Scalar>()[row] : Scalar(1)) *
                  dy_rows.row(row);
    }
    return dbias;
}

#define INSTANTIATE(Scalar)                                                             \
    template Tensor linear_forward<Scalar>(const Tensor&, const Tensor&, const Tensor&, \
                                           const Tensor&, const RowGroups&);            \
    template Tensor linear_backward_input<Scalar>(const Tensor&, const Tensor&,         \
                                                  const RowGroups&);                    \
    template Tensor linear_backward_weight<Scalar>(const Tensor&, const Tensor&,        \
                                                   const RowGroups&);                   \
    template Tensor linear_backward_bias<Scalar>(const Tensor&, const Tensor&,          \
                                                 const RowGroups&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::cpu
