// rung.cu: which rung of the ladder a product takes.

#include "optimized_gpu/grouped_gemm/rung.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>

#include "gpu/check.h"
#include "optimized_gpu/grouped_gemm/tile.h"

namespace moe::optimized {
namespace {

std::atomic<int> wanted_rung = 0;  // 0: none
std::atomic<std::optional<Consumers>> wanted_consumers;

// TUTORIAL: wgmma is code of sm_90a, which runs on compute capability 9.0 and on no
// other, later ones included.
bool device_has_wgmma() {
    int device = 0, major = 0, minor = 0;
    gpu::check(cudaGetDevice(&device), "device");
    gpu::check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
               "device");
    gpu::check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
               "device");
    return major == 9 && minor == 0;
}

}  // namespace

std::string to_string(Rung rung) {
    switch (rung) {
        case Rung::mma_sync: return "1_mma_sync";
        case Rung::tma_wgmma: return "2_tma_wgmma";
        case Rung::warp_specialized: return "3_warp_specialized";
        case Rung::scheduler_and_epilogue: return "4_scheduler_and_epilogue";
    }
    return {};
}

Rung chosen_rung(std::initializer_list<std::int64_t> widths) {
    const int wanted = wanted_rung;
    if (wanted == int(Rung::mma_sync)) return Rung::mma_sync;
    const bool whole_chunks = std::all_of(widths.begin(), widths.end(), [](auto width) {
        return width > 0 && width % kChunk == 0;
    });
    if (!whole_chunks || !device_has_wgmma()) return Rung::mma_sync;
    return wanted == 0 ? kHighestRung : static_cast<Rung>(wanted);
}

void set_rung(std::optional<Rung> rung) {
    wanted_rung = rung ? int(*rung) : 0;
}

Consumers chosen_consumers(std::int64_t depth) {
    return wanted_consumers.load().value_or(depth < kLongDepth ? Consumers::ping_pong
                                                               : Consumers::cooperative);
}

void set_consumers(std::optional<Consumers> consumers) {
    wanted_consumers = consumers;
}

}  // namespace moe::optimized
