// device_calibration.cu: what this GPU can copy, and multiply with its vendor's library.

#include <cuda_runtime.h>

#include <vector>

#include "bench/calibration.h"
#include "bench/stopwatch.h"
#include "bench/timing.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "gpu/check.h"
#include "gpu/cublas.h"
#include "gpu/tensor.h"

namespace moe::bench {
namespace {

constexpr std::int64_t kCopyBytes = std::int64_t{1} << 30, kSize = 8192;
constexpr int kCopies = 5, kProducts = 10;

/// (kSize, kSize) bf16 of N(0, 1): zeros would draw less power and be faster. A million
/// values are drawn and laid end to end.
Tensor normal_matrix(std::uint64_t stream) {
    constexpr std::int64_t kDrawn = 1 << 20;
    Tensor drawn = Tensor::empty({kDrawn}, DType::f32);
    const Rng rng(7, stream);
    for (std::int64_t i = 0; i < kDrawn; ++i)
        drawn.data<float>()[i] = static_cast<float>(rng.normal(std::uint64_t(i)));
    const Tensor block = transfer(drawn, {MemorySpace::device, DType::bf16});
    Tensor matrix = gpu::device_empty<__nv_bfloat16>({kSize, kSize});
    for (std::int64_t i = 0; i < kSize * kSize; i += kDrawn)
        gpu::check(
            cudaMemcpy(gpu::device_data<__nv_bfloat16>(matrix) + i, block.view().bytes,
                       block.size_bytes(), cudaMemcpyDeviceToDevice),
            "cudaMemcpy");
    return matrix;
}

class DeviceCalibrator : public Calibrator {
  public:
    Calibration measure() override {
        Calibration ceilings;
        {
            const Tensor source = gpu::device_zeros<std::uint8_t>({kCopyBytes});
            const Tensor target = gpu::device_empty<std::uint8_t>({kCopyBytes});
            const double ms = median_of(kCopies, [&] {
                gpu::check(cudaMemcpyAsync(target.view().bytes, source.view().bytes,
                                           std::size_t(kCopyBytes),
                                           cudaMemcpyDeviceToDevice, nullptr),
                           "cudaMemcpy");
            });
            ceilings.copy_gb_per_s = 2.0 * double(kCopyBytes) / (1e-3 * ms) / 1e9;
        }
        if (!missing().empty()) return ceilings;
        const Tensor a = normal_matrix(1), b = normal_matrix(2);
        const Tensor c = gpu::device_empty<__nv_bfloat16>({kSize, kSize});
        const double ms = median_of(kProducts, [&] {
            cublas_.product(c.view().bytes, a.view().bytes, b.view().bytes, kSize);
        });
        const double flops = 2.0 * double(kSize) * double(kSize) * double(kSize);
        ceilings.product_tflops = flops / (1e-3 * ms) / 1e12;
        return ceilings;
    }
    std::string product() const override {
        return fmt::format("cuBLAS bf16 {0} x {0} x {0}", kSize);
    }
    std::string missing() const override { return cublas_.missing(); }

  private:
    double median_of(int count, const std::function<void()>& work) {
        for (int i = 0; i < 3; ++i) work();
        std::vector<double> samples;
        for (int i = 0; i < count; ++i) samples.push_back(stopwatch_->time(work));
        return summarize(samples).median;
    }

    std::unique_ptr<Stopwatch> stopwatch_ = make_device_stopwatch();
    gpu::Cublas cublas_;
};

}  // namespace

std::unique_ptr<Calibrator> make_device_calibrator() {
    return std::make_unique<DeviceCalibrator>();
}

}  // namespace moe::bench
