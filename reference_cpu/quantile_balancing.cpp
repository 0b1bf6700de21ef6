// quantile_balancing.cpp: a choice by logits less a number for each expert, and the
// numbers that would have balanced it.

#include "reference_cpu/quantile_balancing.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "distributed/quantile_balancing.h"
#include "reference_cpu/rows.h"
#include "reference_cpu/scores.h"

namespace moe::cpu {

//! [quantile_balancing]
QuantileChoice choose_by_quantiles(const Tensor& logits, const Tensor& beta,
                                   std::int64_t topk) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = topk;
    QuantileChoice choice{Tensor::empty({T, K}, DType::i64),
                          Tensor::empty({T, E}, DType::f32)};
    const auto b = row_of<float>(beta.reshaped({1, E}), 0);
    for (std::int64_t t = 0; t < T; ++t) {
        const auto x = row_of<float>(logits, t);
        std::vector<float> keys(E);
        for (std::int64_t e = 0; e < E; ++e) keys[e] = x[e] - b[e];
        // K experts, and the first that has to stand back
        const auto best = top_k<float>(keys, K + 1);
        std::copy_n(best.begin(), K, row_of<std::int64_t>(choice.topk_idx, t).begin());
        const float alpha = keys[best[K]];
        for (std::int64_t e = 0; e < E; ++e)
            row_of<float>(choice.margins, t)[e] = x[e] - alpha;
    }
    return choice;
}

Tensor margin_quantiles(const Tensor& margins, std::int64_t topk) {
    const std::int64_t M = margins.dim(0), E = margins.dim(1);
    const std::int64_t share = distributed::even_share(M, topk, E);
    Tensor quantiles = Tensor::empty({E}, DType::f32);
    for (std::int64_t e = 0; e < E; ++e) {
        std::vector<float> column(M);
        for (std::int64_t t = 0; t < M; ++t) column[t] = row_of<float>(margins, t)[e];
        std::nth_element(column.begin(), column.begin() + share, column.end(),
                         std::greater<float>());
        quantiles.data<float>()[e] = column[share];
    }
    return quantiles;
}

Tensor get_updated_qb_beta(const Tensor& beta, const Tensor& sum, std::int64_t count,
                           double ema) {
    const std::int64_t E = beta.numel();
    const float old_part = float(ema), new_part = float(1.0 - ema);
    Tensor updated = Tensor::empty({E}, DType::f32);
    float* moved = updated.data<float>();
    for (std::int64_t e = 0; e < E; ++e)
        moved[e] = old_part * beta.data<float>()[e] +
                   new_part * (sum.data<float>()[e] / float(count));
    const float mean = std::accumulate(moved, moved + E, 0.0f) / float(E);
    for (std::int64_t e = 0; e < E; ++e) moved[e] -= mean;
    return updated;
}
//! [quantile_balancing]

}  // namespace moe::cpu
