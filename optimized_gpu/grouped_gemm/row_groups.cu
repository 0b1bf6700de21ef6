// row_groups.cu: where groups of rows begin.

#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {
namespace {

/// One warp, 32 groups at a time.
__global__ void __launch_bounds__(kLanes)
    row_groups_kernel(int* offsets, const int* rows_per_group, int groups) {
    int before = 0;
    for (int first = 0; first < groups; first += kLanes) {
        const int g = first + lane_index();
        const int rows = g < groups ? rows_per_group[g] : 0;
        const int offset = before + warp_sum_before(rows);
        if (g < groups) offsets[g] = offset;
        before += warp_sum(rows);
    }
    if (lane_index() == 0) offsets[groups] = before;
}

__global__ void single_group_kernel(int* offsets, int num_rows) {
    offsets[0] = 0;
    offsets[1] = num_rows;
}

}  // namespace

RowGroups make_row_groups(const Tensor& rows_per_group, cudaStream_t stream) {
    const Tensor counts = transfer(rows_per_group, {MemorySpace::device, DType::i32});
    RowGroups groups = {gpu::device_empty<int>({counts.dim(0) + 1})};
    gpu::launch("row_groups_kernel", row_groups_kernel, {1, kLanes, 0, stream},
                gpu::device_data<int>(groups.offsets), gpu::device_data<int>(counts),
                int(counts.dim(0)));
    return groups;
}

RowGroups make_single_group(std::int64_t num_rows, cudaStream_t stream) {
    RowGroups groups = {gpu::device_empty<int>({2})};
    gpu::launch("single_group_kernel", single_group_kernel, {1, 1, 0, stream},
                gpu::device_data<int>(groups.offsets), int(num_rows));
    return groups;
}

}  // namespace moe::optimized
