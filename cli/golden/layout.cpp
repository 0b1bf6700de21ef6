// layout.cpp: other orders in which checkpoints keep the gate and up rows of FC1.

#include "cli/golden/layout.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace moe {
namespace {

/// Row `row` of the layer's order, gate rows first, lies at this one of 2F in the file.
using RowOrder = std::int64_t (*)(std::int64_t row, std::int64_t F);

struct Layout {
    const char* words;
    RowOrder at;
};

constexpr std::array<Layout, 2> kLayouts = {{
    {"gate and up rows take turns: gate 0, up 0, gate 1, … (moe_mlp_glu_interleave_size "
     "1)",
     [](std::int64_t row, std::int64_t F) {
         return row < F ? 2 * row : 2 * (row - F) + 1;
     }},
    {"all up rows come before the gate rows",
     [](std::int64_t row, std::int64_t F) { return row < F ? row + F : row - F; }},
}};

/// (…, 2F, H) or (…, 2F) with its rows in the layer's order.
/// @param axis  of the 2F rows
Tensor reordered(const Tensor& from, int axis, RowOrder at) {
    const Tensor to = Tensor::empty(from.shape(), from.dtype());
    const std::int64_t rows = from.dim(axis);
    std::int64_t outer = 1, bytes = std::int64_t(size_of(from.dtype()));
    for (int a = 0; a < axis; ++a) outer *= from.dim(a);
    for (int a = axis + 1; a < int(from.shape().size()); ++a) bytes *= from.dim(a);
    auto* const target = static_cast<std::byte*>(to.view().bytes);
    const auto* const source = static_cast<const std::byte*>(from.view().bytes);
    for (std::int64_t o = 0; o < outer; ++o)
        for (std::int64_t row = 0; row < rows; ++row)
            std::memcpy(target + (o * rows + row) * bytes,
                        source + (o * rows + at(row, rows / 2)) * bytes,
                        std::size_t(bytes));
    return to;
}

bool is_output(const std::string& name) {
    return name.ends_with("expect.output");
}

/// The forward alone, with what it is judged by.
GoldenCase output_of(const GoldenCase& golden) {
    GoldenCase result = golden;
    for (GoldenRank& rank : result.ranks) {
        rank.change_inputs([](GoldenInput& input) { input.grad_output = Tensor(); });
        std::erase_if(rank.expected,
                      [](const auto& item) { return !is_output(item.first); });
    }
    return result;
}

/// FC1 of the experts, or of the shared expert: its tensors with the axis of their rows.
using Fc1 = std::vector<std::pair<const char*, int>>;

}  // namespace

std::string layout_hint(const GoldenCase& golden, const CaseResult& result,
                        const std::function<CaseResult(const GoldenCase&)>& verify) {
    const bool differs =
        std::any_of(result.checks.begin(), result.checks.end(),
                    [](const TensorCheck& c) { return !c.ok && is_output(c.name); });
    if (!golden.config.gated_linear_unit || !differs) return "";
    if (golden.config.moe_mlp_glu_interleave_size ||
        golden.config.moe_shared_expert_glu_interleave_size)
        return "";  // who says how they lie has looked
    const Fc1 experts = {{"experts.linear_fc1.weight", 1},
                         {"experts.linear_fc1.bias", 1}};
    const Fc1 shared = {{"shared_experts.linear_fc1.weight", 0}};
    const bool has_shared = golden.config.shared_ffn() > 0;
    for (const Layout& layout : kLayouts)
        for (const bool also_shared : {false, true}) {
            if (also_shared && !has_shared) continue;
            GoldenCase changed = output_of(golden);
            Fc1 tensors = experts;
            if (also_shared) tensors.insert(tensors.end(), shared.begin(), shared.end());
            for (const auto& [name, axis] : tensors)
                if (Tensor& rows = changed.parameters[name]; rows.defined())
                    rows = reordered(rows, axis, layout.at);
                else
                    changed.parameters.erase(name);
            if (verify(changed).ok)
                return std::string(
                           "the output is the expected one if in linear_fc1 of "
                           "the experts") +
                       (also_shared ? " and shared experts " : " ") + layout.words +
                       "; here all gate rows come before the up rows";
        }
    return "";
}

}  // namespace moe
