// matrix.cpp: ldmatrix, stmatrix and mma.sync, which a warp executes together. Who holds
// which element: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions".

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "cuda_on_cpu/observe_instructions.h"
#include "hopper/accumulation.h"
#include "hopper/hopper.h"

namespace cuda_on_cpu {
namespace {

// ----------------------------------------------------------------- ldmatrix and stmatrix
// TUTORIAL: a matrix is 8 rows of 8 elements of 16 bits. Lane l names the address of row
// l mod 8 of matrix l / 8. Afterwards its register i holds two elements of matrix i: row
// l / 4, columns 2 (l mod 4) and the next; transposed, with rows and columns exchanged.
struct MatrixLane {
    std::uint32_t* registers;  ///< read by stmatrix
    std::byte* row;
    int matrices;
    bool transposed;
};

/// Calls `move(lane, register, half, element)` for every element of the warp's matrices.
template <typename Move>
void for_each_element(Block& block, const char* name, void* const* operands, Site site,
                      Move move) {
    const auto lane_of = [&](int lane) -> MatrixLane& {
        return *static_cast<MatrixLane*>(operands[lane]);
    };
    const MatrixLane first = lane_of(0);
    for (int row = 0; row < 8 * first.matrices; ++row) try {
            shared_position(block, name, lane_of(row).row, 16, 16);
        } catch (const Fault& fault) {
            throw Fault{fault.what + ", in lane " + std::to_string(row), site};
        }
    for (int lane = 0; lane < kWarpSize; ++lane)
        for (int i = 0; i < first.matrices; ++i)
            for (int half = 0; half < 2; ++half) {
                const int along = lane / 4, across = 2 * (lane % 4) + half;
                const int row = first.transposed ? across : along;
                const int column = first.transposed ? along : across;
                move(lane_of(lane), i, half, lane_of(8 * i + row).row + 2 * column);
            }
}

/// To the observed build, a lane's row is what the lane itself loads or stores.
void tell_of_rows(int warp, void* const* operands, bool writes, Site site) {
    const auto row = [&](int lane) {
        return static_cast<const MatrixLane*>(operands[lane])->row;
    };
    const int rows = 8 * static_cast<const MatrixLane*>(operands[0])->matrices;
    for (int lane = 0; lane < rows; ++lane)
        observe::lane_access(warp * kWarpSize + lane, row(lane), 16, writes, site);
}

void complete_ldmatrix(Block& block, int warp, void* const* operands, Site site) {
    tell_of_rows(warp, operands, false, site);
    for_each_element(block, "ldmatrix", operands, site,
                     [](MatrixLane& lane, int i, int half, std::byte* element) {
                         auto* target = reinterpret_cast<std::byte*>(&lane.registers[i]);
                         std::memcpy(target + 2 * half, element, 2);
                     });
}
void complete_stmatrix(Block& block, int warp, void* const* operands, Site site) {
    tell_of_rows(warp, operands, true, site);
    for_each_element(block, "stmatrix", operands, site,
                     [](MatrixLane& lane, int i, int half, std::byte* element) {
                         auto* source = reinterpret_cast<std::byte*>(&lane.registers[i]);
                         std::memcpy(element, source + 2 * half, 2);
                     });
}
constexpr Collective kLdmatrix{"ldmatrix", false, complete_ldmatrix};
constexpr Collective kStmatrix{"stmatrix", false, complete_stmatrix};

// ------------------------------------------------------------------------------ mma.sync
struct MmaLane {
    float* d;
    const std::uint32_t *a, *b;
    MmaType type;
};

/// Element `half` of a register of two 16-bit numbers, or the register itself.
float element(MmaType type, std::uint32_t bits, int half) {
    const auto word = static_cast<unsigned short>(bits >> (16 * half));
    switch (type) {
        case MmaType::bf16: return __nv_bfloat16(__nv_bfloat16_raw{word});
        case MmaType::f16: return __half(__half_raw{word});
        // tf32 is fp32 of which the unit reads the upper 19 bits.
        default: return std::bit_cast<float>(bits & 0xffffe000u);
    }
}

void complete_mma(Block&, int, void* const* operands, Site site) {
    const auto lane_of = [&](int lane) -> MmaLane& {
        return *static_cast<MmaLane*>(operands[lane]);
    };
    const MmaType type = lane_of(0).type;
    const bool wide = type == MmaType::tf32;
    const int depth = wide ? 8 : 16, halves = wide ? 1 : 2;
    float a[16][16], b[8][16];
    for (int lane = 0; lane < kWarpSize; ++lane) {
        const MmaLane& own = lane_of(lane);
        const int group = lane / 4, place = lane % 4;
        for (int i = 0; i < 4; ++i)
            for (int half = 0; half < halves; ++half)
                a[group + 8 * (i & 1)][halves * place + half + depth / 2 * (i / 2)] =
                    element(type, own.a[i], half);
        for (int i = 0; i < 2; ++i)
            for (int half = 0; half < halves; ++half)
                b[group][halves * place + half + depth / 2 * i] =
                    element(type, own.b[i], half);
    }
    observe::mma_flops(2 * 16 * 8 * std::uint64_t(depth), site);
    const Accumulation& unit = options().accumulation;
    for (int lane = 0; lane < kWarpSize; ++lane)
        for (int i = 0; i < 4; ++i) {
            float& sum = lane_of(lane).d[i];
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            sum = accumulate(unit, sum, a[row], 1, b[column], 1, depth);
        }
}
constexpr Collective kMma[] = {{"mma_m16n8k16 (bf16)", false, complete_mma},
                               {"mma_m16n8k16 (fp16)", false, complete_mma},
                               {"mma_m16n8k8 (tf32)", false, complete_mma}};

// ----------------------------------------------------------------- elect.sync,
// setmaxnreg
void complete_elect(Block&, int, void* const* operands, Site) {
    for (int lane = 0; lane < kWarpSize; ++lane)
        *static_cast<bool*>(operands[lane]) = lane == 0;
}
constexpr Collective kElect{"elect_one", false, complete_elect};

struct RegistersLane {
    int count;
    bool increase;
};
void complete_registers(Block& block, int warp, void* const* operands, Site site) {
    const auto& wanted = *static_cast<RegistersLane*>(operands[0]);
    const std::string name = wanted.increase ? "setmaxnreg_inc" : "setmaxnreg_dec";
    std::vector<int>& registers = block.hopper().registers;
    int& own = registers[std::size_t(warp)];
    if (own != 0 && (wanted.increase ? wanted.count < own : wanted.count > own))
        throw Fault{name + ": " + std::to_string(wanted.count) +
                        " registers, but the "
                        "warp has " +
                        std::to_string(own),
                    site};
    own = wanted.count;
    int total = 0;
    for (int count : registers) total += kWarpSize * (count == 0 ? 24 : count);
    if (total > 65536)
        throw Fault{name + ": the block's warps would hold " + std::to_string(total) +
                        " registers: must be at most 65536",
                    site};
}
constexpr Collective kIncrease{"setmaxnreg_inc", false, complete_registers};
constexpr Collective kDecrease{"setmaxnreg_dec", false, complete_registers};

}  // namespace

void ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transposed,
              Site site) {
    auto* bytes = const_cast<std::byte*>(static_cast<const std::byte*>(row));
    MatrixLane lane{registers, bytes, matrices, transposed};
    Block::running()->collective(kLdmatrix, &lane, site);
}
void stmatrix(void* row, const std::uint32_t* registers, int matrices, bool transposed,
              Site site) {
    MatrixLane lane{const_cast<std::uint32_t*>(registers), static_cast<std::byte*>(row),
                    matrices, transposed};
    Block::running()->collective(kStmatrix, &lane, site);
}
void mma_m16n8(float* d, const std::uint32_t* a, const std::uint32_t* b, MmaType type,
               Site site) {
    MmaLane lane{d, a, b, type};
    Block::running()->collective(kMma[int(type)], &lane, site);
}
bool elect_one(Site site) {
    bool elected = false;
    Block::running()->collective(kElect, &elected, site);
    return elected;
}
void set_max_registers(int count, bool increase, Site site) {
    RegistersLane lane{count, increase};
    Block::running()->collective(increase ? kIncrease : kDecrease, &lane, site);
}

}  // namespace cuda_on_cpu
