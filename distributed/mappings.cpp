#include "distributed/mappings.h"

#include <numeric>

#include "core/components.h"
#include "core/transfer.h"
#include "gpu/cast.h"

namespace moe::distributed {
namespace {

/// An uninitialised tensor like `input` with another number of rows.
Tensor with_rows(const Tensor& input, std::int64_t rows) {
    Shape shape = input.shape();
    shape.at(0) = rows;
    return Tensor::empty(shape, input.dtype(), input.space());
}

std::int64_t total(const Splits& splits) {
    return std::accumulate(splits.begin(), splits.end(), std::int64_t{0});
}

/// In the space where it is, and without a wait of the host.
Tensor cast(const Tensor& input, DType dtype) {
    return input.space() == MemorySpace::device ? gpu::cast(input, dtype)
                                                : transfer(input, {input.space(), dtype});
}

}  // namespace

Tensor all_to_all(Communicator& group, const Tensor& input, const Splits& output_splits,
                  const Splits& input_splits) {
    if (group.size() == 1) return input;
    const Tensor output = with_rows(input, total(output_splits));
    group.all_to_all(output, input, output_splits, input_splits);
    return output;
}

Tensor gather_from_sequence_parallel_region(Communicator& group, const Tensor& input,
                                            const Splits& output_split_sizes) {
    if (group.size() == 1) return input;
    const Splits rows = output_split_sizes.empty() ? Splits(group.size(), input.dim(0))
                                                   : output_split_sizes;
    const Tensor output = with_rows(input, total(rows));
    group.all_gather(output, input, rows);
    return output;
}

Tensor reduce_scatter_to_sequence_parallel_region(Communicator& group,
                                                  const Tensor& input,
                                                  const Splits& input_split_sizes) {
    if (group.size() == 1) return input;
    const Splits rows = input_split_sizes.empty()
                            ? Splits(group.size(), input.dim(0) / group.size())
                            : input_split_sizes;
    const Tensor output = with_rows(input, rows[group.rank()]);
    group.reduce_scatter(output, input, rows);
    return output;
}

Tensor reduce_scatter_in_probs_dtype(Communicator& group, const Tensor& input,
                                     const Splits& input_split_sizes) {
    if (group.size() == 1) return input;
    const Placement rows = {input.space(), input.dtype()};
    const Tensor sum = reduce_scatter_to_sequence_parallel_region(
        group, cast(input, probs_placement(rows).dtype), input_split_sizes);
    return cast(sum, rows.dtype);
}

Tensor reduce_from_tensor_model_parallel_region(Communicator& group,
                                                const Tensor& input) {
    if (group.size() == 1) return input;
    const Tensor output = input.clone();
    group.all_reduce(output);
    return output;
}

}  // namespace moe::distributed
