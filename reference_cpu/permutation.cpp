// permutation.cpp: copy routed token rows into expert order, and back.

#include "reference_cpu/permutation.h"

#include "core/past_cache.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/rows.h"

namespace moe::cpu {

//! [make_row_map]
RowMap make_row_map(const Tensor& routing_map) {
    const std::int64_t T = routing_map.dim(0), E = routing_map.dim(1);
    const std::uint8_t* routed = routing_map.data<std::uint8_t>();
    RowMap map;
    map.num_tokens = T;
    map.num_experts = E;

    // Expert by expert, token by token: the row order
    map.tokens_per_expert.assign(E, 0);
    map.token_offsets.assign(T + 1, 0);
    for (std::int64_t e = 0; e < E; ++e) {
        for (std::int64_t t = 0; t < T; ++t) {
            if (!routed[t * E + e]) continue;
            map.row_token.push_back(t);
            map.row_expert.push_back(e);
            ++map.tokens_per_expert[e];
            ++map.token_offsets[t + 1];
        }
    }

    // The inverse: the rows of each token, ascending because rows are visited in order
    for (std::int64_t t = 0; t < T; ++t) map.token_offsets[t + 1] += map.token_offsets[t];
    std::vector<std::int64_t> next(map.token_offsets.begin(),
                                   map.token_offsets.end() - 1);
    map.token_rows.resize(map.num_rows());
    for (std::int64_t r = 0; r < map.num_rows(); ++r)
        map.token_rows[next[map.row_token[r]]++] = r;
    return map;
}
//! [make_row_map]

//! [pad_routing_map]
Tensor pad_routing_map(const Tensor& routing_map, std::int64_t pad_multiple) {
    const std::int64_t T = routing_map.dim(0), E = routing_map.dim(1);
    Tensor padded = routing_map.clone();
    std::uint8_t* routed = padded.data<std::uint8_t>();
    for (std::int64_t e = 0; e < E; ++e) {
        std::int64_t count = 0;
        for (std::int64_t t = 0; t < T; ++t) count += routed[t * E + e] != 0;
        for (std::int64_t t = 0; t < T && count % pad_multiple != 0; ++t) {
            if (routed[t * E + e] != 0) continue;
            routed[t * E + e] = 1;
            ++count;
        }
    }
    return padded;
}

template <typename Scalar>
void pad_routing_map_backward(Tensor& dprobs, const Tensor& routing_map) {
    const std::uint8_t* routed = routing_map.data<std::uint8_t>();
    for (std::int64_t i = 0; i < dprobs.numel(); ++i)
        if (routed[i] == 0) dprobs.data<Scalar>()[i] = Scalar(0);
}
//! [pad_routing_map]

namespace {

/// Row r of the result is the source row of the row's token. Token by token, because a
/// row just read is still in the cache when it is copied again.
template <typename Scalar>
Tensor copy_token_rows(const Tensor& source, const RowMap& map) {
    Tensor rows = Tensor::empty({map.num_rows(), source.dim(1)}, dtype_of<Scalar>);
    const CopyBytes copy = copy_for(rows.size_bytes());
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < map.num_tokens; ++t) {
        const auto row = row_of<Scalar>(source, t);
        for (std::int64_t i = map.token_offsets[t]; i < map.token_offsets[t + 1]; ++i)
            copy(row_of<Scalar>(rows, map.token_rows[i]).data(), row.data(),
                 row.size_bytes());
    }
    return rows;
}

/// Row t of the result is the sum of the token's rows, in ascending order.
template <typename Scalar>
Tensor sum_token_rows(const Tensor& rows, const RowMap& map) {
    Tensor sums = Tensor::empty({map.num_tokens, rows.dim(1)}, dtype_of<Scalar>);
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < map.num_tokens; ++t) {
        auto sum = row_at<Scalar>(sums, t);
        sum.setZero();
        for (std::int64_t i = map.token_offsets[t]; i < map.token_offsets[t + 1]; ++i)
            sum += row_at<Scalar>(rows, map.token_rows[i]);
    }
    return sums;
}

}  // namespace

//! [permute]
template <typename Scalar>
Tensor permute(const Tensor& tokens, const RowMap& map) {
    return copy_token_rows<Scalar>(tokens, map);
}

template <typename Scalar>
Tensor permute_backward(const Tensor& drows, const RowMap& map) {
    return sum_token_rows<Scalar>(drows, map);
}

template <typename Scalar>
Tensor permute_probs(const Tensor& probs, const RowMap& map) {
    Tensor row_probs = Tensor::empty({map.num_rows()}, dtype_of<Scalar>);
    const auto p = as_matrix<Scalar>(probs);  // (T, E)
    for (std::int64_t r = 0; r < map.num_rows(); ++r)
        row_probs.data<Scalar>()[r] = p(map.row_token[r], map.row_expert[r]);
    return row_probs;
}

template <typename Scalar>
Tensor permute_probs_backward(const Tensor& drow_probs, const RowMap& map) {
    Tensor dprobs = Tensor::zeros({map.num_tokens, map.num_experts}, dtype_of<Scalar>);
    auto dp = as_matrix<Scalar>(dprobs);  // (T, E)
    for (std::int64_t r = 0; r < map.num_rows(); ++r)
        dp(map.row_token[r], map.row_expert[r]) = drow_probs.data<Scalar>()[r];
    return dprobs;
}
//! [permute]

//! [unpermute]
template <typename Scalar>
Tensor unpermute(const Tensor& rows, const RowMap& map) {
    return sum_token_rows<Scalar>(rows, map);
}

template <typename Scalar>
Tensor unpermute_backward(const Tensor& doutput, const RowMap& map) {
    return copy_token_rows<Scalar>(doutput, map);
}
//! [unpermute]

template <typename Scalar>
Tensor sort_chunks_by_idxs(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                           const std::vector<std::int64_t>& order) {
    MOE_CHECK_EQ(sizes.size(), order.size());
    std::vector<std::int64_t> starts = {0};
    for (std::int64_t size : sizes) starts.push_back(starts.back() + size);
    MOE_CHECK_EQ(starts.back(), rows.dim(0));

    const std::int64_t width = rows.shape().size() == 1 ? 1 : rows.dim(1);
    Tensor sorted = Tensor::empty(rows.shape(), dtype_of<Scalar>);
    const CopyBytes copy = copy_for(sorted.size_bytes());
    Scalar* next = sorted.data<Scalar>();
    for (std::int64_t chunk : order) {
        copy(next, rows.data<Scalar>() + starts[chunk] * width,
             sizes[chunk] * width * sizeof(Scalar));
        next += sizes[chunk] * width;
    }
    return sorted;
}

#define INSTANTIATE(Scalar)                                                       \
    template void pad_routing_map_backward<Scalar>(Tensor&, const Tensor&);       \
    template Tensor permute<Scalar>(const Tensor&, const RowMap&);                \
    template Tensor permute_backward<Scalar>(const Tensor&, const RowMap&);       \
    template Tensor permute_probs<Scalar>(const Tensor&, const RowMap&);          \
    template Tensor permute_probs_backward<Scalar>(const Tensor&, const RowMap&); \
    template Tensor unpermute<Scalar>(const Tensor&, const RowMap&);              \
    template Tensor unpermute_backward<Scalar>(const Tensor&, const RowMap&);     \
    template Tensor sort_chunks_by_idxs<Scalar>(const Tensor&,                    \
                                                const std::vector<std::int64_t>&, \
                                                const std::vector<std::int64_t>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::cpu
