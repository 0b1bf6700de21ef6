// executor.cu: what the CPU executor costs: a switch between two fibers, and a matrix
// product that waits at barriers. It says nothing about a GPU.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "gpu/launch.h"
#include "gpu/tensor.h"

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
    for (const char* schedule : {"forward", "reverse", "random:1", "priority:1"}) {
        cuda_on_cpu::parse_schedule(schedule, cuda_on_cpu::options().schedule);
        const double seconds = fastest([&] {
            gpu::launch(
                "tiled_gemm_kernel", tiled_gemm_kernel,
                {dim3(kSize / kTile, kSize / kTile), dim3(kTile, kTile), sizeof(Tiles)},
                gpu::device_data<float>(c), gpu::device_data<float>(a),
                gpu::device_data<float>(b), kSize);
            gpu::synchronize();
        });
        const std::vector<float> product = gpu::to_host<float>(c);
        double expected = 0.0;
        for (std::int64_t k = 0; k < kSize; ++k)
            expected += values[kSize + k] * values[k * kSize + 2];
        MOE_CHECK_EQ(double(product[kSize + 2]), expected);
        fmt::print("256 x 256 x 256 product, schedule {:<12}  {:6.1f} ms\n", schedule,
                   1e3 * seconds);
    }
}

}  // namespace
}  // namespace moe

int main() {
    moe::run();
}
