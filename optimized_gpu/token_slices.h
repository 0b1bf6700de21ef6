/// @file
/// How rows of tokens are moved: a warp for a slice of each token.
///
/// TUTORIAL: a lane moves 16 bytes at a time, the most that one instruction can, so a
/// warp 512. Each warp has one token and a slice of four such pieces of its row: it reads
/// the token's row numbers once for all four, and with slices long rows of few tokens
/// still keep all multiprocessors busy.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "gpu/tensor.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

inline constexpr int kSteps = 4, kSliceVectors = kSteps * kLanes;

/// As wide a vector, up to 16 bytes, as divides all that is given: the bytes of a row and
/// the addresses at which the first ones lie, since each must begin at a multiple of it.
inline int vector_bytes(std::uintptr_t all) {
    return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 2;
}

inline int blocks_for(int count, int per_block) {
    return (count + per_block - 1) / per_block;
}

/// Blocks of kThreads for all slices of all tokens. @param width  in vectors
inline dim3 slice_blocks(int num_tokens, int width) {
    return dim3(blocks_for(num_tokens, kWarps), blocks_for(width, kSliceVectors));
}

/// Lane i has row first + i of the token's, -1 where there is none.
/// @param token_rows (T, K)
__device__ inline int load_rows_of_token(const int* token_rows, int token, int K,
                                         int first) {
    const int k = first + lane_index();
    return k < K ? token_rows[std::int64_t(token) * K + k] : -1;
}

/// The column of a lane in step 0 of its slice; the next steps are 32 vectors further on.
__device__ inline int first_column() {
    return int(blockIdx.y) * kSliceVectors + lane_index();
}

/// Element i of a vector of T.
template <typename T, typename Vector>
__device__ float element(const Vector& vector, int i) {
    T value;
    memcpy(&value, reinterpret_cast<const char*>(&vector) + i * sizeof(T), sizeof(T));
    return gpu::widen(value);
}
template <typename T, typename Vector>
__device__ void set_element(Vector& vector, int i, float number) {
    const T value = gpu::narrow<T>(number);
    memcpy(reinterpret_cast<char*>(&vector) + i * sizeof(T), &value, sizeof(T));
}

}  // namespace moe::optimized
