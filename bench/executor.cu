// executor.cu: what the CPU executor costs: a switch between two fibers, a matrix product
// that waits at barriers, and one by TMA and wgmma. It says nothing about a GPU.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cuda_on_cpu/observe.h"
#include "gpu/convert.h"
#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor.h"
#include "gpu/tensor_map.h"

namespace moe {
namespace {

constexpr int kTile = 16;
constexpr std::int64_t kSize = 256;

struct Tiles {
    float a[kTile][kTile], b[kTile][kTile];
};

/// c = a b, all (n, n), one 16 x 16 tile per block; n is a multiple of 16.
__global__ void tiled_gemm_kernel(float* c, const float* a, const float* b,
                                  std::int64_t n) {
    Tiles& tiles = gpu::shared_memory<Tiles>();
    const std::int64_t row = std::int64_t(blockIdx.y) * kTile + threadIdx.y;
    const std::int64_t column = std::int64_t(blockIdx.x) * kTile + threadIdx.x;
    float sum = 0.0f;
    for (std::int64_t k = 0; k < n; k += kTile) {
        tiles.a[threadIdx.y][threadIdx.x] = a[row * n + k + threadIdx.x];
        tiles.b[threadIdx.y][threadIdx.x] = b[(k + threadIdx.y) * n + column];
        __syncthreads();
        for (int i = 0; i < kTile; ++i)
            sum += tiles.a[threadIdx.y][i] * tiles.b[i][threadIdx.x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}

__global__ void wait_kernel(int rounds) {
    for (int i = 0; i < rounds; ++i) __syncthreads();
}

struct Slices {
    alignas(1024) __nv_bfloat16 a[2][64 * 64], b[2][kSize * 64];
    std::uint64_t full[2];
};

/// c = a bᵀ, 64 rows per block: one warpgroup loads slices of 64 of the depth into two
/// stages by TMA, and multiplies.
__global__ void wgmma_gemm_kernel(float* c, const __grid_constant__ CUtensorMap a,
                                  const __grid_constant__ CUtensorMap b) {
    namespace ptx = gpu::ptx;
    constexpr int kN = int(kSize);
    Slices& s = gpu::shared_memory<Slices>();
    const int t = int(threadIdx.x), row = int(blockIdx.x) * 64;
    const auto load = [&](int step) {
        const int stage = step % 2;
        ptx::mbarrier_arrive_expect_tx(&s.full[stage], sizeof s.a[0] + sizeof s.b[0]);
        ptx::tma_load_2d(s.a[stage], &a, &s.full[stage], step * 64, row);
        ptx::tma_load_2d(s.b[stage], &b, &s.full[stage], step * 64, 0);
    };
    if (t == 0) {
        for (std::uint64_t& barrier : s.full) ptx::mbarrier_init(&barrier, 1);
        ptx::fence_mbarrier_init();
        load(0);
        load(1);
    }
    __syncthreads();
    float d[kN / 2];
    for (int step = 0; step < kN / 64; ++step) {
        const int stage = step % 2;
        ptx::mbarrier_wait(&s.full[stage], step / 2 & 1);
        const auto tile = [](const __nv_bfloat16* start) {
            return ptx::make_smem_desc(start, 0, 1024, ptx::TileSwizzle::bytes_128);
        };
        ptx::wgmma_fence();
        for (int k = 0; k < 64; k += 16)
            ptx::wgmma_m64k16<kN>(d, ptx::advance(tile(s.a[stage]), 2 * k),
                                  ptx::advance(tile(s.b[stage]), 2 * k),
                                  step > 0 || k > 0);
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        __syncthreads();
        if (t == 0 && step + 2 < kN / 64) load(step + 2);
    }
    for (int i = 0; i < kN / 2; ++i) {
        const int r = row + t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
        c[r * kN + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i];
    }
}

/// Seconds of the fastest of five runs.
template <typename Work>
double fastest(Work work) {
    double best = 1e9;
    for (int run = 0; run < 5; ++run) {
        const auto start = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> passed =
            std::chrono::steady_clock::now() - start;
        best = std::min(best, passed.count());
    }
    return best;
}

/// The same in a build that sees every load and store; without it: another build.
template <typename Work>
void observe(Work work) {
    namespace observe = cuda_on_cpu::observe;
    cuda_on_cpu::options().schedule = {};
    for (const bool races : {false, true}) {
        observe::start({.races = races});
        const double seconds = fastest(work);
        observe::stop();
        fmt::print("256 x 256 x 256 product, {:<22}  {:6.1f} ms\n",
                   races ? "observed, with races" : "observed", 1e3 * seconds);
    }
}

void run() {
    cuda_on_cpu::options().threads = 1;
    gpu::register_device_memory();

    constexpr int kRounds = 100'000, kThreads = 256;
    const auto before = cuda_on_cpu::switch_count();
    const double waiting = fastest([&] {
        gpu::launch("wait_kernel", wait_kernel, {1, kThreads}, kRounds);
        gpu::synchronize();
    });
    const double switches = double(cuda_on_cpu::switch_count() - before) / 5.0;
    fmt::print("a thread's wait at a barrier, with its switch  {:6.1f} ns\n",
               1e9 * waiting / switches);

    // Small whole numbers: their products and sums are exact
    std::vector<float> values(kSize * kSize);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(i * 7 % 11);
    const Tensor a = gpu::to_device(values), b = gpu::to_device(values);
    Tensor c = gpu::device_empty<float>({kSize, kSize});
    const auto multiply = [&] {
        gpu::launch(
            "tiled_gemm_kernel", tiled_gemm_kernel,
            {dim3(kSize / kTile, kSize / kTile), dim3(kTile, kTile), sizeof(Tiles)},
            gpu::device_data<float>(c), gpu::device_data<float>(a),
            gpu::device_data<float>(b), kSize);
        gpu::synchronize();
    };
    for (const char* schedule : {"forward", "reverse", "random:1", "priority:1"}) {
        cuda_on_cpu::parse_schedule(schedule, cuda_on_cpu::options().schedule);
        const double seconds = fastest(multiply);
        const std::vector<float> product = gpu::to_host<float>(c);
        double expected = 0.0;
        for (std::int64_t k = 0; k < kSize; ++k)
            expected += values[kSize + k] * values[k * kSize + 2];
        MOE_CHECK_EQ(double(product[kSize + 2]), expected);
        fmt::print("256 x 256 x 256 product, schedule {:<12}  {:6.1f} ms\n", schedule,
                   1e3 * seconds);
    }

    cuda_on_cpu::options().schedule = {};
    const std::vector<__nv_bfloat16> narrow(values.begin(), values.end());
    Tensor halves = gpu::device_empty<__nv_bfloat16>({kSize, kSize});
    gpu::check(cudaMemcpy(gpu::device_data<__nv_bfloat16>(halves), narrow.data(),
                          narrow.size() * 2, cudaMemcpyHostToDevice),
               "cudaMemcpy");
    const auto map = [&](std::uint32_t rows) {
        gpu::TensorMapShape shape;
        shape.sizes = {kSize, kSize};
        shape.box = {64, rows};
        shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
        return gpu::make_tensor_map(gpu::device_data<__nv_bfloat16>(halves), shape);
    };
    const double seconds = fastest([&] {
        gpu::launch("wgmma_gemm_kernel", wgmma_gemm_kernel,
                    {unsigned(kSize / 64), 128, sizeof(Slices)},
                    gpu::device_data<float>(c), map(64), map(kSize));
        gpu::synchronize();
    });
    double expected = 0.0;
    for (std::int64_t k = 0; k < kSize; ++k)
        expected += values[kSize + k] * values[2 * kSize + k];
    MOE_CHECK_EQ(double(gpu::to_host<float>(c)[kSize + 2]), expected);
    fmt::print("256 x 256 x 256 product, TMA and wgmma          {:6.1f} ms\n",
               1e3 * seconds);
    if constexpr (cuda_on_cpu::observe::kObserved) observe(multiply);
}

}  // namespace
}  // namespace moe

int main() {
    moe::run();
}
