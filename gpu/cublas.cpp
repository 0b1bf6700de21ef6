#include "gpu/cublas.h"

#include <cublas_v2.h>

#include "gpu/check.h"
#include "gpu/library.h"

namespace moe::gpu {

namespace {

using Create = cublasStatus_t(cublasHandle_t*);
using Destroy = cublasStatus_t(cublasHandle_t);
using GemmEx = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int,
                              int, int, const void* alpha, const void* a, cudaDataType,
                              int, const void* b, cudaDataType, int, const void* beta,
                              void* c, cudaDataType, int, cublasComputeType_t,
                              cublasGemmAlgo_t);

}  // namespace

struct Cublas::State {
    Library library{{"libcublas.so.13", "libcublas.so.12", "libcublas.so"}};
    Create* create = library.function<Create>("cublasCreate_v2");
    Destroy* destroy = library.function<Destroy>("cublasDestroy_v2");
    GemmEx* gemm = library.function<GemmEx>("cublasGemmEx");
    cublasHandle_t handle = nullptr;
};

Cublas::Cublas() : state_(std::make_unique<State>()) {
    State& s = *state_;
    if (!s.library.found() || s.create == nullptr || s.gemm == nullptr) {
        missing_ = fmt::format(
            "cuBLAS was not found ({}); MOE_LIBRARY_PATH can name its folder",
            s.library.found() ? "a function is missing in " + s.library.where()
                              : s.library.where());
        return;
    }
    if (const cublasStatus_t status = s.create(&s.handle);
        status != CUBLAS_STATUS_SUCCESS)
        missing_ = fmt::format("cuBLAS cannot start: status {}", int(status));
}

Cublas::~Cublas() {
    if (state_->handle != nullptr && state_->destroy != nullptr)
        state_->destroy(state_->handle);
}

void Cublas::product(void* c, const void* a, const void* b, std::int64_t n) const {
    const float one = 1.0f, zero = 0.0f;
    const int size = int(n);
    // TUTORIAL: cuBLAS reads matrices by columns. Read so, our row-major a is its
    // transpose, and c^T = b^T a^T: exchange the operands, transpose nothing.
    const cublasStatus_t status =
        state_->gemm(state_->handle, CUBLAS_OP_N, CUBLAS_OP_N, size, size, size, &one, b,
                     CUDA_R_16BF, size, a, CUDA_R_16BF, size, &zero, c, CUDA_R_16BF, size,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS)
        throw DeviceError(fmt::format("cublasGemmEx: status {}", int(status)));
}

}  // namespace moe::gpu
