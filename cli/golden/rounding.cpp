// rounding.cpp: the case again, with inputs that are off by a rounding.

#include "cli/golden/rounding.h"

#include <algorithm>
#include <cmath>

#include "cli/compare/closeness.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"

namespace moe {
namespace {

constexpr int kDraws = 6;
constexpr double kUnitFp32 = 0x1p-24, kUnitBf16 = 0x1p-8;

/// By how much, relatively, inputs may be off.
struct Amplitudes {
    double router;   ///< and hidden states: whoever is chosen is chosen by them
    double experts;  ///< and the gradient of the output
};

/// A sum of n terms, one after the other, is off by up to about √n roundings.
Amplitudes choose_amplitudes(const GoldenCase& golden, DType dtype) {
    if (dtype == DType::f64) return {kUnitFp32, 0x1p-53};  // scores are fp32
    std::int64_t longest = std::max(golden.config.hidden_size,
                                    golden.config.moe_ffn_hidden_size.value_or(0));
    std::int64_t tokens = 0;
    for (const GoldenRank& rank : golden.ranks)
        for (const GoldenInput& input : rank.micro_batches())
            tokens += input.hidden_states.dim(0) * input.hidden_states.dim(1);
    longest = std::max(longest, tokens);
    const double sums = kUnitFp32 * (1.0 + std::sqrt(double(longest)));
    return {sums, dtype == DType::bf16 ? kUnitBf16 + sums : sums};
}

/// Every element times 1 + amplitude * (-1 to 1), in fp64.
Tensor rounded(const Tensor& tensor, double amplitude, const Rng& rng) {
    if (!tensor.defined()) return tensor;
    std::vector<double> values = to_doubles(tensor);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] *= 1.0 + amplitude * (2.0 * rng.uniform(i) - 1.0);
    return Tensor::from<double>(tensor.shape(), values);
}

GoldenCase rounded(const GoldenCase& golden, const Amplitudes& amplitudes, int draw) {
    GoldenCase result = golden;
    std::uint64_t stream = 0;
    const auto round = [&](Tensor& tensor, double amplitude) {
        tensor = rounded(tensor, amplitude, Rng(1 + draw, stream++));
    };
    for (auto& [name, parameter] : result.parameters)
        if (!is_buffer(name))
            round(parameter,
                  name.starts_with("router.") ? amplitudes.router : amplitudes.experts);
    for (GoldenRank& rank : result.ranks)
        rank.change_inputs([&](GoldenInput& input) {
            round(input.hidden_states, amplitudes.router);
            round(input.grad_output, amplitudes.experts);
        });
    return result;
}

/// Maps and counts.
bool same_integers(const std::vector<TensorMap>& a, const std::vector<TensorMap>& b) {
    for (std::size_t rank = 0; rank < a.size(); ++rank)
        for (const auto& [name, value] : a[rank])
            if (!is_floating(value.dtype()) &&
                !measure_closeness(b[rank].at(name), value).within(0.0))
                return false;
    return true;
}

}  // namespace

RoundingDistances measure_rounding(const GoldenCase& golden, DType dtype) {
    RoundingDistances result(golden.ranks.size());
    const ModuleSpec exact = ModuleSpec::uniform({"reference_cpu", DType::f64});
    const Amplitudes amplitudes = choose_amplitudes(golden, dtype);
    try {
        const std::vector<TensorMap> base = run_golden(golden, exact);
        for (int draw = 0; draw < kDraws; ++draw) {
            const auto moved = run_golden(rounded(golden, amplitudes, draw), exact);
            if (!same_integers(base, moved)) continue;
            for (std::size_t rank = 0; rank < base.size(); ++rank)
                for (const auto& [name, value] : base[rank]) {
                    if (!is_floating(value.dtype())) continue;
                    const Closeness change =
                        measure_closeness(moved[rank].at(name), value);
                    double& distance = result[rank][name];
                    if (change.same_shape && change.finite)
                        distance = std::max(distance, change.distance);
                }
        }
    } catch (const InputError&) {
        // What the layer refuses of changed inputs says nothing of those given
    }
    return result;
}

}  // namespace moe
