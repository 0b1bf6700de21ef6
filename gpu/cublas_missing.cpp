// cublas_missing.cpp: Cublas in a build for the CPU.

#include "core/error.h"
#include "gpu/cublas.h"

namespace moe::gpu {

struct Cublas::State {};

Cublas::Cublas() : missing_("cuBLAS needs a build for GPUs") {}
Cublas::~Cublas() = default;

void Cublas::product(void*, const void*, const void*, std::int64_t) const {
    MOE_CHECK(missing_.empty());
}

}  // namespace moe::gpu
