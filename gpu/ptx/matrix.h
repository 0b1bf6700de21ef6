/// @file
/// matrices of 8 x 8 elements of 16 bits between shared memory and the registers of a
/// warp, and their products: ldmatrix, stmatrix, mma.sync. Source: PTX ISA, "Warp Level
/// Matrix Multiply-Accumulate Instructions".
///
/// TUTORIAL: all 32 lanes execute these together. Register i of lane l holds, of matrix
/// i, row l / 4, columns 2 (l mod 4) and the next one; with `transposed` the row and
/// column change places.
#pragma once

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// One matrix; lane l < 8 names the 16 bytes of row l, aligned to 16.
__device__ inline void ldmatrix_x1(std::uint32_t (&registers)[1], const void* row,
                                   Site site = MOE_HERE) {
    MOE_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, "
                         "[%1];"
                         : "=r"(registers[0])
                         : "r"(shared_address(row))
                         : "memory"),
            cuda_on_cpu::ldmatrix(registers, row, 1, false, site));
}
__device__ inline void ldmatrix_x1_trans(std::uint32_t (&registers)[1], const void* row,
                                         Site site = MOE_HERE) {
    MOE_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, "
                         "[%1];"
                         : "=r"(registers[0])
                         : "r"(shared_address(row))
                         : "memory"),
            cuda_on_cpu::ldmatrix(registers, row, 1, true, site));
}
/// Two matrices; lane l < 16 names row l mod 8 of matrix l / 8.
__device__ inline void ldmatrix_x2(std::uint32_t (&registers)[2], const void* row,
                                   Site site = MOE_HERE) {
    MOE_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, "
                         "[%2];"
                         : "=r"(registers[0]), "=r"(registers[1])
                         : "r"(shared_address(row))
                         : "memory"),
            cuda_on_cpu::ldmatrix(registers, row, 2, false, site));
}
__device__ inline void ldmatrix_x2_trans(std::uint32_t (&registers)[2], const void* row,
                                         Site site = MOE_HERE) {
    MOE_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, "
                         "[%2];"
                         : "=r"(registers[0]), "=r"(registers[1])
                         : "r"(shared_address(row))
                         : "memory"),
            cuda_on_cpu::ldmatrix(registers, row, 2, true, site));
}
/// Four matrices; lane l < 32 names row l mod 8 of matrix l / 8.
__device__ inline void ldmatrix_x4(std::uint32_t (&registers)[4], const void* row,
                                   Site site = MOE_HERE) {
    MOE_PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, "
                         "[%4];"
                         : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                           "=r"(registers[3])
                         : "r"(shared_address(row))
                         : "memory"),
            cuda_on_cpu::ldmatrix(registers, row, 4, false, site));
}
__device__ inline void ldmatrix_x4_trans(std::uint32_t (&registers)[4], const void* row,
                                         Site site = MOE_HERE) {
    MOE_PTX(
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, "
                     "[%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(shared_address(row))
                     : "memory"),
        cuda_on_cpu::ldmatrix(registers, row, 4, true, site));
}
/// The other way: the warp's registers into rows of shared memory. sm_90.
__device__ inline void stmatrix_x1(void* row, const std::uint32_t (&registers)[1],
                                   Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], "
                                "{%1};" ::"r"(shared_address(row)),
                                "r"(registers[0])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 1, false, site));
}
__device__ inline void stmatrix_x1_trans(void* row, const std::uint32_t (&registers)[1],
                                         Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], "
                                "{%1};" ::"r"(shared_address(row)),
                                "r"(registers[0])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 1, true, site));
}
__device__ inline void stmatrix_x2(void* row, const std::uint32_t (&registers)[2],
                                   Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], "
                                "{%1, %2};" ::"r"(shared_address(row)),
                                "r"(registers[0]), "r"(registers[1])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 2, false, site));
}
__device__ inline void stmatrix_x2_trans(void* row, const std::uint32_t (&registers)[2],
                                         Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], "
                                "{%1, %2};" ::"r"(shared_address(row)),
                                "r"(registers[0]), "r"(registers[1])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 2, true, site));
}
__device__ inline void stmatrix_x4(void* row, const std::uint32_t (&registers)[4],
                                   Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], "
                                "{%1, %2, %3, %4};" ::"r"(shared_address(row)),
                                "r"(registers[0]), "r"(registers[1]), "r"(registers[2]),
                                "r"(registers[3])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 4, false, site));
}
__device__ inline void stmatrix_x4_trans(void* row, const std::uint32_t (&registers)[4],
                                         Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], "
                                "{%1, %2, %3, %4};" ::"r"(shared_address(row)),
                                "r"(registers[0]), "r"(registers[1]), "r"(registers[2]),
                                "r"(registers[3])
                                : "memory"),
                   cuda_on_cpu::stmatrix(row, registers, 4, true, site));
}

// d (16, 8) += a b. Lane l holds, with g = l / 4 and t = l mod 4:
//   d[i]  row g + 8 (i / 2), column 2 t + i mod 2
//   16-bit types, depth 16: a[i] row g + 8 (i mod 2), depth 2 t + 8 (i / 2) and the next;
//                           b[i] column g, depth 2 t + 8 i and the next
//   tf32, depth 8:          a[i] row g + 8 (i mod 2), depth t + 4 (i / 2);
//                           b[i] column g, depth t + 4 i
__device__ inline void mma_m16n8k16_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2],
                                         Site site = MOE_HERE) {
    MOE_PTX(
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
        cuda_on_cpu::mma_m16n8(d, a, b, cuda_on_cpu::MmaType::bf16, site));
}
__device__ inline void mma_m16n8k16_f16(float (&d)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2],
                                        Site site = MOE_HERE) {
    MOE_PTX(
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
        cuda_on_cpu::mma_m16n8(d, a, b, cuda_on_cpu::MmaType::f16, site));
}
__device__ inline void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2],
                                        Site site = MOE_HERE) {
    MOE_PTX(
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])),
        cuda_on_cpu::mma_m16n8(d, a, b, cuda_on_cpu::MmaType::tf32, site));
}

}  // namespace moe::gpu::ptx
