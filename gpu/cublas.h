/// @file
/// The dense product of NVIDIA's own library, as the ceiling that ours are held to.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace moe::gpu {

/// cuBLAS, opened when the program runs.
class Cublas {
  public:
    Cublas();
    ~Cublas();

    /// "" when it can be used; otherwise why not, in one line.
    const std::string& missing() const { return missing_; }

    /// c = a b on the default stream, all (n, n) bf16 on the device, summed in fp32. Does
    /// not wait. DeviceError when cuBLAS refuses.
    void product(void* c, const void* a, const void* b, std::int64_t n) const;

  private:
    struct State;
    std::unique_ptr<State> state_;
    std::string missing_;
};

}  // namespace moe::gpu
