/// @file
/// The 32 shapes of wgmma as nvcc wants them: the text of an instruction names each of its
/// registers, so a macro lists them. Read wgmma.h first.
#pragma once

#include <cstdint>

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace moe::gpu::ptx {

// clang-format off
// The N / 2 accumulators of a thread: their names in the text, and what they stand for.
#define MOE_R8 "%0, %1, %2, %3"
#define MOE_R16 MOE_R8 ", %4, %5, %6, %7"
#define MOE_R24 MOE_R16 ", %8, %9, %10, %11"
#define MOE_R32 MOE_R24 ", %12, %13, %14, %15"
#define MOE_R40 MOE_R32 ", %16, %17, %18, %19"
#define MOE_R48 MOE_R40 ", %20, %21, %22, %23"
#define MOE_R56 MOE_R48 ", %24, %25, %26, %27"
#define MOE_R64 MOE_R56 ", %28, %29, %30, %31"
#define MOE_R72 MOE_R64 ", %32, %33, %34, %35"
#define MOE_R80 MOE_R72 ", %36, %37, %38, %39"
#define MOE_R88 MOE_R80 ", %40, %41, %42, %43"
#define MOE_R96 MOE_R88 ", %44, %45, %46, %47"
#define MOE_R104 MOE_R96 ", %48, %49, %50, %51"
#define MOE_R112 MOE_R104 ", %52, %53, %54, %55"
#define MOE_R120 MOE_R112 ", %56, %57, %58, %59"
#define MOE_R128 MOE_R120 ", %60, %61, %62, %63"
#define MOE_R136 MOE_R128 ", %64, %65, %66, %67"
#define MOE_R144 MOE_R136 ", %68, %69, %70, %71"
#define MOE_R152 MOE_R144 ", %72, %73, %74, %75"
#define MOE_R160 MOE_R152 ", %76, %77, %78, %79"
#define MOE_R168 MOE_R160 ", %80, %81, %82, %83"
#define MOE_R176 MOE_R168 ", %84, %85, %86, %87"
#define MOE_R184 MOE_R176 ", %88, %89, %90, %91"
#define MOE_R192 MOE_R184 ", %92, %93, %94, %95"
#define MOE_R200 MOE_R192 ", %96, %97, %98, %99"
#define MOE_R208 MOE_R200 ", %100, %101, %102, %103"
#define MOE_R216 MOE_R208 ", %104, %105, %106, %107"
#define MOE_R224 MOE_R216 ", %108, %109, %110, %111"
#define MOE_R232 MOE_R224 ", %112, %113, %114, %115"
#define MOE_R240 MOE_R232 ", %116, %117, %118, %119"
#define MOE_R248 MOE_R240 ", %120, %121, %122, %123"
#define MOE_R256 MOE_R248 ", %124, %125, %126, %127"
#define MOE_D8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define MOE_D16 MOE_D8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define MOE_D24 MOE_D16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define MOE_D32 MOE_D24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define MOE_D40 MOE_D32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define MOE_D48 MOE_D40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define MOE_D56 MOE_D48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define MOE_D64 MOE_D56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define MOE_D72 MOE_D64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define MOE_D80 MOE_D72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define MOE_D88 MOE_D80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define MOE_D96 MOE_D88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define MOE_D104 MOE_D96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define MOE_D112 MOE_D104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define MOE_D120 MOE_D112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define MOE_D128 MOE_D120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define MOE_D136 MOE_D128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define MOE_D144 MOE_D136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define MOE_D152 MOE_D144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define MOE_D160 MOE_D152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define MOE_D168 MOE_D160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define MOE_D176 MOE_D168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define MOE_D184 MOE_D176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define MOE_D192 MOE_D184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define MOE_D200 MOE_D192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define MOE_D208 MOE_D200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define MOE_D216 MOE_D208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define MOE_D224 MOE_D216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define MOE_D232 MOE_D224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define MOE_D240 MOE_D232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define MOE_D248 MOE_D240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define MOE_D256 MOE_D248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

template <int N>
struct WgmmaShape;

// o0, o1, … number the operands after the accumulators.
#define MOE_WGMMA(n, o0, o1, o2, o3, o4, o5, o6)                                        \
    template <>                                                                         \
    struct WgmmaShape<n> {                                                              \
        template <int a_transposed, int b_transposed>                                   \
        __device__ static void from_shared(float (&d)[n / 2], std::uint64_t a,          \
                                           std::uint64_t b, int accumulate) {           \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"              \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {"   \
                         MOE_R##n "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4     \
                         ";\n}"                                                         \
                         : MOE_D##n                                                     \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(a_transposed),          \
                           "n"(b_transposed));                                          \
        }                                                                               \
        template <int b_transposed>                                                     \
        __device__ static void from_registers(float (&d)[n / 2],                        \
                                              const std::uint32_t (&a)[4],              \
                                              std::uint64_t b, int accumulate) {        \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"              \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {"   \
                         MOE_R##n "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4  \
                         ", p, 1, 1, %" #o6 ";\n}"                                      \
                         : MOE_D##n                                                     \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),          \
                           "r"(accumulate), "n"(b_transposed));                         \
        }                                                                               \
    };
MOE_WGMMA(8, 4, 5, 6, 7, 8, 9, 10)
MOE_WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
MOE_WGMMA(24, 12, 13, 14, 15, 16, 17, 18)
MOE_WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
MOE_WGMMA(40, 20, 21, 22, 23, 24, 25, 26)
MOE_WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
MOE_WGMMA(56, 28, 29, 30, 31, 32, 33, 34)
MOE_WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
MOE_WGMMA(72, 36, 37, 38, 39, 40, 41, 42)
MOE_WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
MOE_WGMMA(88, 44, 45, 46, 47, 48, 49, 50)
MOE_WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
MOE_WGMMA(104, 52, 53, 54, 55, 56, 57, 58)
MOE_WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
MOE_WGMMA(120, 60, 61, 62, 63, 64, 65, 66)
MOE_WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
MOE_WGMMA(136, 68, 69, 70, 71, 72, 73, 74)
MOE_WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
MOE_WGMMA(152, 76, 77, 78, 79, 80, 81, 82)
MOE_WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
MOE_WGMMA(168, 84, 85, 86, 87, 88, 89, 90)
MOE_WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
MOE_WGMMA(184, 92, 93, 94, 95, 96, 97, 98)
MOE_WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
MOE_WGMMA(200, 100, 101, 102, 103, 104, 105, 106)
MOE_WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
MOE_WGMMA(216, 108, 109, 110, 111, 112, 113, 114)
MOE_WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
MOE_WGMMA(232, 116, 117, 118, 119, 120, 121, 122)
MOE_WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
MOE_WGMMA(248, 124, 125, 126, 127, 128, 129, 130)
MOE_WGMMA(256, 128, 129, 130, 131, 132, 133, 134)

#undef MOE_WGMMA
// clang-format on

}  // namespace moe::gpu::ptx
#endif
