/// @file
/// The few functions of NVML, the library behind nvidia-smi, that say how a GPU is doing.
/// It comes with the driver, and is opened when first asked.
#pragma once

#include <map>
#include <string>

namespace moe::gpu {

/// Driver, clocks and limits of the device at this PCI bus address, "0000:0f:00.0", by
/// name; empty where NVML is missing.
std::map<std::string, std::string> nvml_facts(const std::string& pci_bus_id);

/// Clock, power, temperature and what holds the clock back, in words; "" without NVML.
std::string nvml_state(const std::string& pci_bus_id);

}  // namespace moe::gpu
