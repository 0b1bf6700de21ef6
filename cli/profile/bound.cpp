#include "cli/profile/bound.h"

#include <algorithm>
#include <utility>

namespace moe::profile {

double Bound::seconds() const {
    return std::max({hbm, l2, l1, shared, tensor, launch});
}

std::string Bound::resource() const {
    const std::pair<double, const char*> terms[] = {
        {hbm, "HBM"}, {l2, "L2"}, {l1, "L1"}, {shared, "shared"}, {tensor, "tensor"}};
    return std::max_element(
               std::begin(terms), std::end(terms),
               [](const auto& a, const auto& b) { return a.first < b.first; })
        ->second;
}

std::string Bound::limit() const {
    return launch >= std::max({hbm, l2, l1, shared, tensor}) ? "launch" : resource();
}

Bound bound_of(const cuda_on_cpu::observe::Counters& counters, std::int64_t launches,
               const GpuModel& gpu) {
    const std::uint64_t beyond_l1 =
        counters.stores.sectors + counters.atomics.sectors + counters.async_sectors;
    const std::uint64_t in_l1 = counters.loads.sectors + counters.stores.sectors;
    return {double(counters.compulsory_bytes()) / gpu.hbm,
            32.0 * double(beyond_l1) / gpu.l2,
            32.0 * double(in_l1) / gpu.l1,
            double(counters.shared.wavefronts) / gpu.wavefronts,
            double(counters.mma_flops) / gpu.mma_flops,
            double(launches) * gpu.launch};
}

}  // namespace moe::profile
