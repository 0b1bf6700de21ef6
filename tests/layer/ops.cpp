#include "tests/layer/ops.h"

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {

std::unique_ptr<RowOps> make_row_ops(const ComponentSpec& supplier) {
    if (supplier.tier == "reference_cpu") return reference_cpu_row_ops(supplier.dtype);
    MOE_CHECK_EQ(supplier.tier, "naive_gpu");
    return naive_gpu_row_ops(supplier.dtype);
}

std::unique_ptr<RouterOps> make_router_ops(const ComponentSpec& supplier) {
    if (supplier.tier == "reference_cpu") return reference_cpu_router_ops(supplier.dtype);
    MOE_CHECK_EQ(supplier.tier, "naive_gpu");
    return naive_gpu_router_ops(supplier.dtype);
}

Inputs::~Inputs() {
    for (const auto& [given, before] : given_)
        EXPECT_TRUE(BitwiseEqual(given, before)) << "an operation changed its input";
}

Tensor Inputs::operator()(const Tensor& tensor, const Placement& placement) {
    if (!tensor.defined()) return tensor;
    const Tensor before = transfer(tensor, placement);
    given_.emplace_back(before.clone(), before);
    return given_.back().first;
}

}  // namespace moe::test
