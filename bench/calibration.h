/// @file
/// The machine's own ceilings, measured where and when everything else is.
#pragma once

#include <memory>
#include <string>

#include "bench/result.h"

namespace moe::bench {

/// Measures ceilings; keeps its buffers, so that it can be asked before and after.
class Calibrator {
  public:
    virtual ~Calibrator() = default;
    virtual Calibration measure() = 0;
    /// What the product is: "cuBLAS bf16 8192 x 8192 x 8192".
    virtual std::string product() const = 0;
    /// Why there is no product, in one line; "" when there is one.
    virtual std::string missing() const { return ""; }
};

/// A copy of 256 MiB, and Eigen's products in fp32, on all threads at once.
std::unique_ptr<Calibrator> make_host_calibrator();

/// A copy of 1 GiB within the device, and a bf16 product of cuBLAS where it is found.
/// Only on a real GPU. DeviceError when memory is short: it takes 2.4 GiB.
std::unique_ptr<Calibrator> make_device_calibrator();

}  // namespace moe::bench
