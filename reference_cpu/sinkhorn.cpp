// sinkhorn.cpp: balanced affinities between tokens and experts.

#include "reference_cpu/sinkhorn.h"

#include <cmath>

#include "core/sinkhorn_rounds.h"
#include "core/transfer.h"
#include "reference_cpu/eigen.h"

namespace moe::cpu {

//! [sinkhorn]
template <typename Scalar>
Tensor sinkhorn(const Tensor& logits) {
    constexpr float kEpsilon = 1e-8f;
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    Tensor result = transfer(logits.view(), {MemorySpace::host, DType::f32});
    auto cost = as_matrix<float>(result);  // (T, E)
    if (T == 0) return result;
    const float smallest = cost.minCoeff(), largest = cost.maxCoeff();
    if (!std::isfinite(std::exp(largest)))
        reject("logits", largest, "must be at most 88 with sinkhorn (exp in fp32)");
    cost = cost.array().exp();

    // Scale rows, then columns, until the column factors rest
    Eigen::VectorXf d0 = Eigen::VectorXf::Ones(T);
    Eigen::RowVectorXf d1 = Eigen::RowVectorXf::Ones(E);
    for (int round = 1;; ++round) {
        d0 = 1.0f / float(T) / ((cost * d1.transpose()).array() + kEpsilon);
        const Eigen::RowVectorXf previous = d1;
        d1 = 1.0f / float(E) / ((d0.transpose() * cost).array() + kEpsilon);
        const float move = (previous - d1).cwiseAbs().mean();
        if (sinkhorn_rests(round, move, d1.mean())) break;
        if (round == kMostSinkhornRounds) reject_sinkhorn_logits(smallest, largest);
    }
    cost = d0.asDiagonal() * cost * d1.asDiagonal();
    return result;
}
//! [sinkhorn]

template Tensor sinkhorn<float>(const Tensor&);
template Tensor sinkhorn<double>(const Tensor&);

}  // namespace moe::cpu
