/// @file
/// Which checker watches this build. The observed build is compiled with
/// ThreadSanitizer's flag but not linked with it, so the compiler's own macro does not
/// tell them apart.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN 1
#endif

#if defined(__SANITIZE_THREAD__) && !defined(CUDA_ON_CPU_OBSERVE)
#define CUDA_ON_CPU_TSAN 1
#endif
