#include "cli/profile/bound.h"

#include <algorithm>
#include <utility>

namespace moe::profile {

double Bound::seconds() const {
    return std::max({hbm, l2, shared, tensor, launch});
}

std::string Bound::resource() const {
    const std::pair<double, const char*> terms[] = {
        {hbm, "HBM"}, {l2, "L2"}, {shared, "shared"}, {tensor, "tensor"}};
    return std::max_element(
               std::begin(terms), std::end(terms),
               [](const auto& a, const auto& b) { return a.first < b.first; })
        ->second;
}

std::string Bound::limit() const {
    return launch >= std::max({hbm, l2, shared, tensor}) ? "launch" : resource();
}

Bound bound_of(const cuda_on_cpu::observe::Counters& counters, std::int64_t launches,
               const GpuModel& gpu) {
    return {double(counters.compulsory_bytes()) / gpu.hbm,
            double(counters.l2_bytes()) / gpu.l2,
            double(counters.shared.wavefronts) / gpu.wavefronts,
            double(counters.mma_flops) / gpu.mma_flops, double(launches) * gpu.launch};
}

}  // namespace moe::profile
