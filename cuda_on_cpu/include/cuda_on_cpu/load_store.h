/// @file
/// Loads and stores with a caching hint. A CPU takes no hints: plain loads and stores.
#pragma once

#include <type_traits>

#include "cuda_on_cpu/language.h"

#define CUDA_ON_CPU_LOAD(name)                 \
    template <typename T>                      \
    __forceinline__ T name(const T* address) { \
        return *address;                       \
    }
CUDA_ON_CPU_LOAD(__ldg)   // read-only for the whole kernel
CUDA_ON_CPU_LOAD(__ldca)  // all levels
CUDA_ON_CPU_LOAD(__ldcg)  // L2 only
CUDA_ON_CPU_LOAD(__ldcs)  // likely read once
CUDA_ON_CPU_LOAD(__ldlu)  // last use
CUDA_ON_CPU_LOAD(__ldcv)  // never from a cache
#undef CUDA_ON_CPU_LOAD

#define CUDA_ON_CPU_STORE(name)                                            \
    template <typename T>                                                  \
    __forceinline__ void name(T* address, std::type_identity_t<T> value) { \
        *address = value;                                                  \
    }
CUDA_ON_CPU_STORE(__stwb)  // write back
CUDA_ON_CPU_STORE(__stcg)  // L2 only
CUDA_ON_CPU_STORE(__stcs)  // likely written once
CUDA_ON_CPU_STORE(__stwt)  // write through
#undef CUDA_ON_CPU_STORE
