/// @file
/// Maps of every kind, and the same map by plain loops.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "optimized_gpu/row_map.h"

namespace moe::test {

using optimized::RowMap;
using Ints = std::vector<int>;

/// Sizes of one map, and who chooses what.
struct PermutationCase {
    int T, E, K, padding;
    std::string choices = "some";  ///< see ids_of()

    std::string text() const {
        return fmt::format("T={} E={} K={} padding={} {}", T, E, K, padding, choices);
    }
};

/// (T, K) experts. "some": different ones in random order, of which one in eight is
/// dropped and expert 1 never is chosen; "first": expert 0 by all, besides others;
/// "twice": all choices of a token are the same; "none": all are dropped.
inline Ints ids_of(const PermutationCase& c) {
    const Rng rng(7, std::uint64_t(c.T * 1000 + c.E));
    Ints ids;
    for (int t = 0; t < c.T; ++t) {
        Ints experts(c.E);
        for (int e = 0; e < c.E; ++e) experts[e] = e;
        for (int k = 0; k < c.K; ++k) {
            const std::uint64_t at = std::uint64_t(t) * 64 + k;
            std::swap(experts[k], experts[k + rng.below(at, unsigned(c.E - k))]);
            int e = experts[k];
            if (c.choices == "some" && (e == 1 || rng.below(at + 32, 8) == 0)) e = -1;
            if (c.choices == "twice") e = experts[0];
            if (c.choices == "none") e = -1;
            ids.push_back(e);
        }
        if (c.choices == "first") {
            const auto zero = std::find(ids.end() - c.K, ids.end(), 0);
            if (zero == ids.end()) ids.back() = 0;
        }
    }
    return ids;
}

/// The map by plain loops.
struct PlainMap {
    Ints row_token, row_slot, token_rows, offsets = {0}, tokens_per_expert;

    PlainMap(const PermutationCase& c, const Ints& ids) : token_rows(c.T * c.K, -1) {
        Ints rows_of_token(c.T);
        for (int e = 0; e < c.E; ++e) {
            for (int slot = 0; slot < c.T * c.K; ++slot) {
                if (ids[slot] != e) continue;
                const int t = slot / c.K;
                token_rows[t * c.K + rows_of_token[t]++] = int(row_token.size());
                row_token.push_back(t);
                row_slot.push_back(slot);
            }
            tokens_per_expert.push_back(int(row_token.size()) - offsets.back());
            const int most = std::max(c.T, tokens_per_expert.back());
            for (int rows = tokens_per_expert.back();
                 rows < most && rows % c.padding != 0; ++rows) {
                row_token.push_back(-1);
                row_slot.push_back(-1);
            }
            offsets.push_back(int(row_token.size()));
        }
    }
    std::size_t num_rows() const { return row_token.size(); }
};

template <typename T>
Tensor on_device(const std::vector<T>& values, const Shape& shape,
                 DType dtype = DType::f32) {
    return transfer(Tensor::from(shape, values), {MemorySpace::device, dtype});
}

/// The first `count` elements, or all.
template <typename T>
std::vector<T> host(const Tensor& tensor, std::size_t count = std::size_t(-1)) {
    const Tensor copy = transfer(tensor, {MemorySpace::host, tensor.dtype()});
    const T* const values = copy.data<T>();
    return {values, values + std::min(count, std::size_t(copy.numel()))};
}

/// Weights of `count` choices, all different and not 0.
inline std::vector<float> weights_of(std::int64_t count) {
    std::vector<float> weights(count);
    for (std::int64_t i = 0; i < count; ++i) weights[i] = 0.25f + float(i);
    return weights;
}

/// The rows' weights by the plain map.
inline std::vector<float> row_probs_of(const PlainMap& plain,
                                       const std::vector<float>& weights) {
    std::vector<float> probs;
    for (const int slot : plain.row_slot)
        probs.push_back(slot < 0 ? 0.0f : weights[slot]);
    return probs;
}

/// Calls `body` with a map of each case and weights_of() its choices, made in a stream of
/// its own.
using Body =
    std::function<void(const PermutationCase&, const Ints&, const RowMap&, cudaStream_t)>;
inline void with_maps(const std::vector<PermutationCase>& cases, const Body& body) {
    for (const PermutationCase& c : cases) {
        SCOPED_TRACE(c.text());
        const gpu::Stream stream;
        const Ints ids = ids_of(c);
        const Tensor weights = on_device(weights_of(c.T * c.K), {c.T, c.K});
        const RowMap map = optimized::make_row_map(on_device(ids, {c.T, c.K}), c.E,
                                                   c.padding, weights, stream.get());
        body(c, ids, map, stream.get());
        gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    }
}

/// The line of an InputError, before which nothing was launched, or "taken".
inline std::string refusal(const std::function<void()>& action) {
    const auto before = gpu::counters().launches;
    try {
        action();
    } catch (const InputError& error) {
        EXPECT_EQ(gpu::counters().launches, before);
        return error.what();
    }
    return "taken";
}

}  // namespace moe::test
