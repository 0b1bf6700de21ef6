/// @file
/// What the device is and how it is doing: the words beside every measured number.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace moe::gpu {

/// By name, with units: "compute capability", "multiprocessors", "memory", "L2 cache",
/// "driver", "CUDA driver", "CUDA runtime", and, through NVML where it is found, "SM
/// clock at most", "power limit", … Of the emulated device on the executor. DeviceError
/// when there is no device.
std::map<std::string, std::string> device_facts();

/// What changes while a run goes on, "1980 MHz, 412 W, 61 °C, no throttling"; "" where
/// NVML is missing.
std::string device_state();

/// The device's second-level cache, in bytes.
std::int64_t l2_bytes();

}  // namespace moe::gpu
