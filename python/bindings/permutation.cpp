// moe.permute() and moe.unpermute(): the reference's data movement, by itself.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "python/bindings/arrays.h"
#include "python/bindings/checks.h"
#include "python/bindings/objects.h"
#include "reference_cpu/permutation.h"

namespace moe::python {
namespace {

/// What `action` makes of the tensor's C++ type: action(float()) or action(double()).
template <typename Action>
auto by_dtype(const std::string& field, const Tensor& tensor, const Action& action) {
    if (tensor.space() != MemorySpace::host)
        reject(field, "device memory", "must be on the host; .copy() copies it there");
    if (tensor.dtype() == DType::f32) return action(float());
    if (tensor.dtype() == DType::f64) return action(double());
    reject(field, to_string(tensor.dtype()), "must be fp32 or fp64");
}

cpu::RowMap read_map(const Tensor& map) {
    if (map.dtype() != DType::u8 || map.shape().size() != 2 ||
        map.space() != MemorySpace::host)
        reject("routing_map", to_string(map.dtype()) + " " + to_string(map.shape()),
               "must be bool or uint8 (T, E), on the host");
    return cpu::make_row_map(map);
}

void require(const std::string& field, const Tensor& tensor, const Shape& shape) {
    if (tensor.shape() != shape)
        reject(field, to_string(tensor.shape()), "must be " + to_string(shape));
}

void require_rows(const std::string& field, const Tensor& tensor, std::int64_t rows) {
    if (tensor.shape().size() != 2 || tensor.dim(0) != rows)
        reject(field, to_string(tensor.shape()), fmt::format("must be ({}, H)", rows));
}

nb::tuple permute(nb::handle tokens, nb::handle routing_map, nb::handle probs) {
    const Tensor values = tensor_from(tokens, "tokens");
    const cpu::RowMap map = read_map(tensor_from(routing_map, "routing_map"));
    require_rows("tokens", values, map.num_tokens);
    const Tensor weights = tensor_or_none(probs, "probs");
    const Tensor rows = by_dtype("tokens", values, [&](auto scalar) {
        return cpu::permute<decltype(scalar)>(values, map);
    });
    Tensor row_probs;
    if (weights.defined()) {
        require("probs", weights, {map.num_tokens, map.num_experts});
        row_probs = by_dtype("probs", weights, [&](auto scalar) {
            return cpu::permute_probs<decltype(scalar)>(weights, map);
        });
    }
    return nb::make_tuple(to_python(rows), to_python(row_probs),
                          to_python(Tensor::from({map.num_rows()}, map.row_token)));
}

nb::object unpermute(nb::handle rows, nb::handle routing_map) {
    const Tensor values = tensor_from(rows, "rows");
    const cpu::RowMap map = read_map(tensor_from(routing_map, "routing_map"));
    require_rows("rows", values, map.num_rows());
    return to_python(by_dtype("rows", values, [&](auto scalar) {
        return cpu::unpermute<decltype(scalar)>(values, map);
    }));
}

nb::object sort_chunks(nb::handle rows, const std::vector<std::int64_t>& sizes,
                       const std::vector<std::int64_t>& order) {
    const Tensor values = tensor_from(rows, "rows");
    if (values.shape().empty() || values.shape().size() > 2)
        reject("rows", to_string(values.shape()), "must be (N, H) or (N)");
    for (std::int64_t size : sizes)
        if (size < 0 || size > values.dim(0))
            reject("sizes", size, fmt::format("must be 0 to {}", values.dim(0)));
    const auto sum = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    if (sum != values.dim(0))
        reject("sizes", fmt::format("{} in all", sum),
               fmt::format("must sum to the rows, {}", values.dim(0)));
    std::vector<std::int64_t> sorted = order, all(sizes.size());
    std::sort(sorted.begin(), sorted.end());
    std::iota(all.begin(), all.end(), 0);
    if (sorted != all)
        reject("order", to_string(Shape(order)),
               fmt::format("must name each of {} chunks once", sizes.size()));
    return to_python(by_dtype("rows", values, [&](auto scalar) {
        return cpu::sort_chunks_by_idxs<decltype(scalar)>(values, sizes, order);
    }));
}

}  // namespace

void bind_permutation(nb::module_& module) {
    module.def("permute", &permute, nb::arg("tokens").none(),
               nb::arg("routing_map").none(), nb::arg("probs") = nb::none(),
               nb::sig("def permute(tokens: ArrayLike, routing_map: ArrayLike, "
                       "probs: ArrayLike | None = None) "
                       "-> tuple[Tensor, Tensor | None, Tensor]"),
               R"(A copy of each token (T, H) for each of its experts.

Rows (N, H) in ascending order of expert, and of token within an expert; their
probabilities (N), if any are given; and the token of each row (N) int64. fp32 or fp64.
Source: Megatron's moe_utils.py, permute.)");
    module.def("unpermute", &unpermute, nb::arg("rows").none(),
               nb::arg("routing_map").none(),
               nb::sig("def unpermute(rows: ArrayLike, routing_map: ArrayLike) "
                       "-> Tensor"),
               "(T, H): the sum of each token's rows in ascending expert order. Source: "
               "Megatron's moe_utils.py, unpermute.");
    module.def("sort_chunks_by_idxs", &sort_chunks, nb::arg("rows").none(),
               nb::arg("sizes"), nb::arg("order"),
               nb::sig("def sort_chunks_by_idxs(rows: ArrayLike, sizes: list[int], "
                       "order: list[int]) -> Tensor"),
               "Consecutive chunks of rows of these sizes, in this order. Source: "
               "Megatron's moe_utils.py, sort_chunks_by_idxs.");
}

}  // namespace moe::python
