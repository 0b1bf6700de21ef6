// linear.cu: matrix products over groups of rows, one thread per result.

#include "naive_gpu/linear.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {

RowGroups make_row_groups(const std::vector<std::int64_t>& rows_per_group) {
    RowGroups groups;
    std::vector<std::int64_t> row_group;
    groups.offsets.push_back(0);
    for (std::int64_t group = 0; group < std::int64_t(rows_per_group.size()); ++group) {
        groups.offsets.push_back(groups.offsets.back() + rows_per_group[group]);
        row_group.resize(groups.offsets.back(), group);
    }
    groups.row_group = gpu::to_device(row_group);
    groups.device_offsets = gpu::to_device(groups.offsets);
    return groups;
}

namespace {

// TUTORIAL: every thread walks a whole row of x and a whole row of W through global
// memory, and shares nothing with its neighbours: two loads for each multiply-add. That
// is the price of the obvious kernel, and what the optimized tier gets rid of.
/// One thread per element of y (R, out).
template <typename T, typename Y>
__global__ void linear_forward_kernel(Y* y, const T* x, const T* weight, const T* bias,
                                      const gpu::Accumulator<T>* row_scale,
                                      const std::int64_t* row_group,
                                      std::int64_t num_rows, std::int64_t out,
                                      std::int64_t in) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_rows * out) return;
    const std::int64_t row = i / out, column = i % out, group = row_group[row];
    const T* x_row = x + row * in;
    const T* w_row = weight + (group * out + column) * in;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t j = 0; j < in; ++j)
        sum += gpu::widen(x_row[j]) * gpu::widen(w_row[j]);
    if (bias != nullptr) {
        const gpu::Accumulator<T> b = gpu::widen(bias[group * out + column]);
        sum += row_scale != nullptr ? row_scale[row] * b : b;
    }
    y[i] = gpu::narrow<Y>(sum);
}

}  // namespace

template <typename T, typename Y>
Tensor linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& row_scale, const RowGroups& groups,
                      cudaStream_t stream) {
    const std::int64_t num_rows = groups.num_rows(), out = weight.dim(1);
    Tensor y = gpu::device_empty<Y>({num_rows, out});
    gpu::launch(
        "linear_forward_kernel", linear_forward_kernel<T, Y>,
        gpu::one_thread_per(y.numel(), stream), gpu::device_data<Y>(y),
        gpu::device_data<T>(x), gpu::device_data<T>(weight), gpu::device_data<T>(bias),
        gpu::device_data<gpu::Accumulator<T>>(row_scale),
        gpu::device_data<std::int64_t>(groups.row_group), num_rows, out, weight.dim(2));
    return y;
}

namespace {

/// One thread per element of dx (R, in).
template <typename T>
__global__ void linear_backward_input_kernel(T* dx, const T* dy, const T* weight,
                                             const std::int64_t* row_group,
                                             std::int64_t num_rows, std::int64_t out,
                                             std::int64_t in) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_rows * in) return;
    const std::int64_t row = i / in, column = i % in;
    const T* w = weight + row_group[row] * out * in;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t j = 0; j < out; ++j)
        sum += gpu::widen(dy[row * out + j]) * gpu::widen(w[j * in + column]);
    dx[i] = gpu::narrow<T>(sum);
}

}  // namespace

template <typename T>
Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups, cudaStream_t stream) {
    const std::int64_t num_rows = groups.num_rows(), in = weight.dim(2);
    Tensor dx = gpu::device_empty<T>({num_rows, in});
    gpu::launch("linear_backward_input_kernel", linear_backward_input_kernel<T>,
                gpu::one_thread_per(dx.numel(), stream), gpu::device_data<T>(dx),
                gpu::device_data<T>(dy), gpu::device_data<T>(weight),
                gpu::device_data<std::int64_t>(groups.row_group), num_rows, weight.dim(1),
                in);
    return dx;
}

namespace {

/// One thread per element of dW (G, out, in).
template <typename T>
__global__ void linear_backward_weight_kernel(T* dweight, const T* dy, const T* x,
                                              const std::int64_t* offsets,
                                              std::int64_t num_groups, std::int64_t out,
                                              std::int64_t in) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_groups * out * in) return;
    const std::int64_t group = i / (out * in);
    const std::int64_t row_of_w = i / in % out, column_of_w = i % in;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t row = offsets[group]; row < offsets[group + 1]; ++row)
        sum +=
            gpu::widen(dy[row * out + row_of_w]) * gpu::widen(x[row * in + column_of_w]);
    dweight[i] = gpu::narrow<T>(sum);
}

}  // namespace

template <typename T>
Tensor linear_backward_weight(const Tensor& dy, const Tensor& x, const RowGroups& groups,
                              cudaStream_t stream) {
    const std::int64_t num_groups = groups.num_groups(), out = dy.dim(1), in = x.dim(1);
    Tensor dweight = gpu::device_empty<T>({num_groups, out, in});
    gpu::launch(
        "linear_backward_weight_kernel", linear_backward_weight_kernel<T>,
        gpu::one_thread_per(dweight.numel(), stream), gpu::device_data<T>(dweight),
        gpu::device_data<T>(dy), gpu::device_data<T>(x),
        gpu::device_data<std::int64_t>(groups.device_offsets), num_groups, out, in);
    return dweight;
}

namespace {

/// One thread per element of db (G, out), so that every sum has one order.
template <typename T>
__global__ void linear_backward_bias_kernel(T* dbias, const T* dy,
                                            const gpu::Accumulator<T>* row_scale,
                                            const std::int64_t* offsets,
                                            std::int64_t num_groups, std::int64_t out) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_groups * out) return;
    const std::int64_t group = i / out, column = i % out;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t row = offsets[group]; row < offsets[group + 1]; ++row) {
        const gpu::Accumulator<T> term = gpu::widen(dy[row * out + column]);
        sum += row_scale != nullptr ? row_scale[row] * term : term;
    }
    dbias[i] = gpu::narrow<T>(sum);
}

}  // namespace

template <typename T>
Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const RowGroups& groups) {
    const std::int64_t num_groups = groups.num_groups(), out = dy.dim(1);
    Tensor dbias = gpu::device_empty<T>({num_groups, out});
    gpu::launch("linear_backward_bias_kernel", linear_backward_bias_kernel<T>,
                gpu::one_thread_per(dbias.numel()), gpu::device_data<T>(dbias),
                gpu::device_data<T>(dy), gpu::device_data<gpu::Accumulator<T>>(row_scale),
                gpu::device_data<std::int64_t>(groups.device_offsets), num_groups, out);
    return dbias;
}

namespace {

/// One thread per element.
template <typename T>
__global__ void add_to_kernel(T* sum, const T* term, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) sum[i] = gpu::narrow<T>(gpu::widen(sum[i]) + gpu::widen(term[i]));
}

/// One thread per element.
template <typename T>
__global__ void multiply_kernel(T* product, const T* a, const T* b, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) product[i] = gpu::narrow<T>(gpu::widen(a[i]) * gpu::widen(b[i]));
}

}  // namespace

template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b) {
    Tensor product = gpu::device_empty<T>(a.shape());
    gpu::launch("multiply_kernel", multiply_kernel<T>, gpu::one_thread_per(a.numel()),
                gpu::device_data<T>(product), gpu::device_data<T>(a),
                gpu::device_data<T>(b), a.numel());
    return product;
}

template <typename T>
void add_to(Tensor& sum, const Tensor& term) {
    gpu::launch("add_to_kernel", add_to_kernel<T>, gpu::one_thread_per(sum.numel()),
                gpu::device_data<T>(sum), gpu::device_data<T>(term), sum.numel());
}

template Tensor linear_forward<__nv_bfloat16, float>(const Tensor&, const Tensor&,
                                                     const Tensor&, const Tensor&,
                                                     const RowGroups&, cudaStream_t);
#define INSTANTIATE(T)                                                                \
    template Tensor linear_forward<T>(const Tensor&, const Tensor&, const Tensor&,    \
                                      const Tensor&, const RowGroups&, cudaStream_t); \
    template Tensor linear_backward_input<T>(const Tensor&, const Tensor&,            \
                                             const RowGroups&, cudaStream_t);         \
    template Tensor linear_backward_weight<T>(const Tensor&, const Tensor&,           \
                                              const RowGroups&, cudaStream_t);        \
    template Tensor linear_backward_bias<T>(const Tensor&, const Tensor&,             \
                                            const RowGroups&);                        \
    template void add_to<T>(Tensor&, const Tensor&);                                  \
    template Tensor multiply<T>(const Tensor&, const Tensor&);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace moe::naive
