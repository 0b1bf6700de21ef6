# A BLAS for reference_cpu/product_blas.cpp, which several threads may call at once: of
# OpenBLAS only those built with threads of their own.
find_package(BLAS REQUIRED)
include(CheckCXXSourceRuns)
set(CMAKE_REQUIRED_LIBRARIES ${BLAS_LIBRARIES})
check_cxx_source_runs("
    extern \"C\" void sgemm_(...);
    extern \"C\" __attribute__((weak)) int openblas_get_parallel();
    void (*volatile wanted)(...) = sgemm_;
    int main() { return openblas_get_parallel && openblas_get_parallel() == 0; }
" MOE_BLAS_FOR_THREADS)
unset(CMAKE_REQUIRED_LIBRARIES)
if(NOT MOE_BLAS_FOR_THREADS)
    unset(MOE_BLAS_FOR_THREADS CACHE)
    message(FATAL_ERROR "BLAS_LIBRARIES = ${BLAS_LIBRARIES}: must be a BLAS that several "
                        "threads may call, as libopenblas0-pthread's")
endif()
