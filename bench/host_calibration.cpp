// host_calibration.cpp: what this machine's CPU can copy and multiply.

#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "bench/calibration.h"
#include "bench/stopwatch.h"
#include "bench/timing.h"
#include "reference_cpu/eigen.h"

namespace moe::bench {
namespace {

constexpr std::int64_t kBlock = 1 << 20, kBlocks = 256, kSize = 512, kSamples = 5;

class HostCalibrator : public Calibrator {
  public:
    HostCalibrator()
        : source_(std::size_t(kBlock * kBlocks), 1),
          target_(source_),
          factors_(cpu::Matrix<float>::Random(kSize, kSize)) {
#pragma omp parallel
#pragma omp atomic
        ++threads_;
    }

    Calibration measure() override {
        Calibration ceilings;
        const double copy_ms = median_of([&] {
#pragma omp parallel for schedule(static)
            for (std::int64_t i = 0; i < kBlocks; ++i)
                std::memcpy(target_.data() + i * kBlock, source_.data() + i * kBlock,
                            std::size_t(kBlock));
        });
        ceilings.copy_gb_per_s = 2.0 * double(kBlock * kBlocks) / (1e-3 * copy_ms) / 1e9;
        const double product_ms = median_of([&] {
#pragma omp parallel
            {
                cpu::Matrix<float> product(kSize, kSize);
                for (int repeat = 0; repeat < 4; ++repeat)
                    product.noalias() = factors_ * factors_.transpose();
            }
        });
        ceilings.product_tflops = 4.0 * threads_ * 2.0 * double(kSize * kSize * kSize) /
                                  (1e-3 * product_ms) / 1e12;
        return ceilings;
    }
    std::string product() const override {
        return fmt::format("Eigen fp32 {0} x {0} x {0} on each of {1} threads", kSize,
                           threads_);
    }

  private:
    double median_of(const std::function<void()>& work) {
        std::vector<double> samples;
        work();
        for (int i = 0; i < kSamples; ++i) samples.push_back(stopwatch_->time(work));
        return summarize(samples).median;
    }

    std::unique_ptr<Stopwatch> stopwatch_ = make_host_stopwatch();
    std::vector<unsigned char> source_, target_;
    cpu::Matrix<float> factors_;
    int threads_ = 0;
};

}  // namespace

std::unique_ptr<Calibrator> make_host_calibrator() {
    return std::make_unique<HostCalibrator>();
}

}  // namespace moe::bench
