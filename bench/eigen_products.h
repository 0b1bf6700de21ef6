/// @file
/// The reference's peer on a CPU: the experts' matrix products, and nothing else, as
/// Eigen does them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/config.h"

namespace moe::bench {

/// Each expert's products, done plainly by Eigen in fp32, one expert per thread at a
/// time: FC1 and FC2 forward, their inputs' and weights' gradients backward.
class EigenProducts {
  public:
    EigenProducts(const MoEConfig& config, const std::vector<std::int64_t>& rows);
    ~EigenProducts();
    void forward();
    void backward();

  private:
    struct Expert;
    std::vector<Expert> experts_;
};

}  // namespace moe::bench
