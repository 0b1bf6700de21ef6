// product_blas.cpp: a matrix product by the BLAS that CMake found, in product.cpp's
// place.

#include <algorithm>

#include "core/error.h"
#include "reference_cpu/product.h"

extern "C" {
void sgemm_(const char* a_op, const char* b_op, const int* m, const int* n, const int* k,
            const float* alpha, const float* a, const int* a_stride, const float* b,
            const int* b_stride, const float* beta, float* c, const int* c_stride);
void dgemm_(const char* a_op, const char* b_op, const int* m, const int* n, const int* k,
            const double* alpha, const double* a, const int* a_stride, const double* b,
            const int* b_stride, const double* beta, double* c, const int* c_stride);
// OpenBLAS's own; null with another library.
__attribute__((weak)) void openblas_set_num_threads(int count);
}

namespace moe::cpu {
namespace {

constexpr auto gemm(const float*) {
    return sgemm_;
}
constexpr auto gemm(const double*) {
    return dgemm_;
}

/// A factor as BLAS, whose matrices have contiguous columns, takes its transpose.
template <typename Scalar>
struct Factor {
    explicit Factor(const Strided<const Scalar>& matrix) {
        const bool is_plain = matrix.column_stride == 1;
        MOE_CHECK(is_plain || matrix.row_stride == 1);
        op = is_plain ? 'N' : 'T';
        // At least the length of what is contiguous, also where there is only one of it
        stride = int(is_plain ? std::max(matrix.row_stride, matrix.columns)
                              : std::max(matrix.column_stride, matrix.rows));
    }
    char op;
    int stride;
};

}  // namespace

template <typename Scalar>
void multiply(const Strided<const Scalar>& left, const Strided<const Scalar>& right,
              const Strided<Scalar>& out) {
    // The tier's loops have the threads; how a library cuts its sums may depend on its.
    static const bool is_alone = [] {
        if (openblas_set_num_threads != nullptr) openblas_set_num_threads(1);
        return true;
    }();
    MOE_CHECK(is_alone);
    const Factor a(right), b(left);  // outᵀ = rightᵀ leftᵀ
    const int m = int(out.columns), n = int(out.rows), k = int(left.columns);
    const int out_stride = int(std::max(out.row_stride, out.columns));
    const Scalar one = 1, zero = 0;
    gemm(out.data)(&a.op, &b.op, &m, &n, &k, &one, right.data, &a.stride, left.data,
                   &b.stride, &zero, out.data, &out_stride);
}

template void multiply<float>(const Strided<const float>&, const Strided<const float>&,
                              const Strided<float>&);
template void multiply<double>(const Strided<const double>&, const Strided<const double>&,
                               const Strided<double>&);

}  // namespace moe::cpu
