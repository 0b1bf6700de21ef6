// matrix_test.cu: ldmatrix, stmatrix and mma.sync.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

struct MatricesSmem {
    // Rows of 8 elements, 24 apart: aligned to 16 bytes, and not next to each other
    alignas(16) std::uint16_t elements[32][24];
};

/// What each lane's registers hold after a load of rows that name themselves.
template <int Count, bool transposed>
__global__ void load_kernel(std::uint32_t* result) {
    auto& s = gpu::shared_memory<MatricesSmem>();
    const int lane = int(threadIdx.x);
    for (int column = 0; column < 8; ++column)
        s.elements[lane][column] = std::uint16_t(256 * lane + column);
    __syncwarp();
    std::uint32_t registers[Count];
    // Lanes that name no row may bring any address.
    const void* row = lane < 8 * Count ? &s.elements[lane][0] : nullptr;
    if constexpr (Count == 1)
        transposed ? ptx::ldmatrix_x1_trans(registers, row)
                   : ptx::ldmatrix_x1(registers, row);
    else if constexpr (Count == 2)
        transposed ? ptx::ldmatrix_x2_trans(registers, row)
                   : ptx::ldmatrix_x2(registers, row);
    else
        transposed ? ptx::ldmatrix_x4_trans(registers, row)
                   : ptx::ldmatrix_x4(registers, row);
    for (int i = 0; i < Count; ++i) result[lane * Count + i] = registers[i];
}

/// The other way; result[row][column].
template <int Count, bool transposed>
__global__ void store_kernel(std::uint16_t* result) {
    auto& s = gpu::shared_memory<MatricesSmem>();
    const int lane = int(threadIdx.x);
    std::uint32_t registers[Count];
    for (int i = 0; i < Count; ++i) {
        const std::uint32_t first = 1000 * i + 2 * lane;
        registers[i] = first | (first + 1) << 16;
    }
    void* row = &s.elements[lane % (8 * Count)][0];
    if constexpr (Count == 1)
        transposed ? ptx::stmatrix_x1_trans(row, registers)
                   : ptx::stmatrix_x1(row, registers);
    else if constexpr (Count == 2)
        transposed ? ptx::stmatrix_x2_trans(row, registers)
                   : ptx::stmatrix_x2(row, registers);
    else
        transposed ? ptx::stmatrix_x4_trans(row, registers)
                   : ptx::stmatrix_x4(row, registers);
    __syncwarp();
    for (int column = 0; column < 8 && lane < 8 * Count; ++column)
        result[lane * 8 + column] = s.elements[lane][column];
}

template <int Count, bool transposed>
void check_matrices(bool stores) {
    DeviceArray<std::uint32_t> loaded(32 * Count);
    launch("load_kernel", load_kernel<Count, transposed>, {1, 32, sizeof(MatricesSmem)},
           loaded.data());
    const auto registers = loaded.to_host();
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < Count; ++i)
            for (int half = 0; half < 2; ++half) {
                int row = lane / 4, column = 2 * (lane % 4) + half;
                if (transposed) std::swap(row, column);
                EXPECT_EQ(registers[lane * Count + i] >> (16 * half) & 0xffff,
                          unsigned(256 * (8 * i + row) + column));
            }
    if (!stores) return;
    DeviceArray<std::uint16_t> stored(8 * Count * 8);
    launch("store_kernel", store_kernel<Count, transposed>, {1, 32, sizeof(MatricesSmem)},
           stored.data());
    const auto rows = stored.to_host();
    for (int row = 0; row < 8 * Count; ++row)
        for (int column = 0; column < 8; ++column) {
            const int r = transposed ? column : row % 8,
                      c = transposed ? row % 8 : column;
            EXPECT_EQ(rows[row * 8 + column],
                      1000 * (row / 8) + 2 * (4 * r + c / 2) + c % 2);
        }
}

TEST(ConformanceMatrix, LdmatrixAndStmatrixMoveRowsAndColumns) {
    const bool stores = has_hopper();
    in_every_mode([&] {
        check_matrices<1, false>(stores);
        check_matrices<1, true>(stores);
        check_matrices<2, false>(stores);
        check_matrices<2, true>(stores);
        check_matrices<4, false>(stores);
        check_matrices<4, true>(stores);
    });
}

// ------------------------------------------------------------------------------ mma.sync
struct Bf16 {
    static constexpr int kDepth = 16;
    __device__ static std::uint32_t bits(float value) {
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
    __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
        ptx::mma_m16n8k16_bf16(d, a, b);
    }
};
struct Half {
    static constexpr int kDepth = 16;
    __device__ static std::uint32_t bits(float value) {
        return __half_as_ushort(__float2half_rn(value));
    }
    __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
        ptx::mma_m16n8k16_f16(d, a, b);
    }
};
struct Tf32 {
    static constexpr int kDepth = 8;
    __device__ static std::uint32_t bits(float value) { return __float_as_uint(value); }
    __device__ static void multiply(float (&d)[4], const std::uint32_t (&a)[4],
                                    const std::uint32_t (&b)[2]) {
        ptx::mma_m16n8k8_tf32(d, a, b);
    }
};

/// c (16, 8) += a (16, depth) b (depth, 8), row-major.
template <typename Type>
__global__ void mma_kernel(float* c, const float* a, const float* b) {
    constexpr int kDepth = Type::kDepth, kEach = kDepth / 8;  // numbers in a register
    const int lane = int(threadIdx.x), group = lane / 4, place = lane % 4;
    std::uint32_t ra[4] = {}, rb[2] = {};
    for (int half = 0; half < kEach; ++half) {
        for (int i = 0; i < 4; ++i) {
            const int row = group + 8 * (i % 2);
            const int depth = kEach * place + half + kDepth / 2 * (i / 2);
            ra[i] |= Type::bits(a[row * kDepth + depth]) << (16 * half);
        }
        for (int i = 0; i < 2; ++i) {
            const int depth = kEach * place + half + kDepth / 2 * i;
            rb[i] |= Type::bits(b[depth * 8 + group]) << (16 * half);
        }
    }
    float d[4];
    const auto index = [&](int i) {
        return (group + 8 * (i / 2)) * 8 + 2 * place + i % 2;
    };
    for (int i = 0; i < 4; ++i) d[i] = c[index(i)];
    Type::multiply(d, ra, rb);
    for (int i = 0; i < 4; ++i) c[index(i)] = d[i];
}

template <typename Type>
void check_mma() {
    constexpr int kDepth = Type::kDepth;
    // Small whole numbers: every product and sum is exact in any order.
    std::vector<float> a(16 * kDepth), b(kDepth * 8), c(16 * 8), want(16 * 8);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = float(int(i * 7 % 23) - 11);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = float(int(i * 5 % 19) - 9);
    for (std::size_t i = 0; i < c.size(); ++i) c[i] = float(i);
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
            float sum = c[row * 8 + column];
            for (int k = 0; k < kDepth; ++k)
                sum += a[row * kDepth + k] * b[k * 8 + column];
            want[row * 8 + column] = sum;
        }
    DeviceArray<float> da(a), db(b), dc(c);
    launch("mma_kernel", mma_kernel<Type>, {1, 32}, dc.data(), da.data(), db.data());
    EXPECT_EQ(dc.to_host(), want);
}

TEST(ConformanceMatrix, MmaMultipliesBf16AndFp16AndTf32) {
    in_every_mode([] {
        check_mma<Bf16>();
        check_mma<Half>();
        check_mma<Tf32>();
    });
}

}  // namespace
}  // namespace moe::test
