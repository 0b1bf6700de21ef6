#include "core/known_names.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "core/error.h"

namespace moe {
namespace {

/// Levenshtein's distance: letters to put in, leave out or change.
std::size_t distance(const std::string& a, const std::string& b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = row[0]++;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t change = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
        }
    }
    return row.back();
}

}  // namespace

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
    std::string best;
    std::size_t least = std::max<std::size_t>(word.size() / 4, 1) + 1;
    for (const std::string& name : known)
        if (const std::size_t far = distance(word, name); far < least) {
            least = far;
            best = name;
        }
    if (!best.empty() || word.size() < 5) return best;
    // A beginning that only one name has
    for (const std::string& name : known)
        if (name.starts_with(word)) {
            if (!best.empty()) return "";
            best = name;
        }
    return best;
}

void reject_unknown(const std::string& field, const std::string& name,
                    const std::vector<std::string>& known, const std::string& are) {
    const std::string meant = nearest(name, known);
    reject(field, name,
           fmt::format("{}{} {}", meant.empty() ? "" : "did you mean " + meant + "? ",
                       are, fmt::join(known, ", ")));
}

const std::vector<std::string>& allowed_values(const std::string& field) {
    static const std::map<std::string, std::vector<std::string>> values = {
        {"activation_func", {"silu", "gelu", "gelu_tanh", "quick_gelu", "squared_relu"}},
        {"moe_router_score_function", {"softmax", "sigmoid", "sqrtsoftplus"}},
        {"moe_router_dtype", {"fp32", "fp64"}},
        {"moe_router_load_balancing_type",
         {"aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing",
          "none"}},
        {"moe_token_drop_policy", {"probs", "position"}},
        {"moe_token_dispatcher_type", {"allgather", "alltoall", "flex"}},
        {"moe_flex_dispatcher_backend", {"deepep", "hybridep", "ncclep"}},
        {"fp8_recipe", {"delayed", "tensorwise", "blockwise", "mxfp8"}},
        {"recompute_granularity", {"selective"}},
        {"recompute_modules",
         {"core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe",
          "shared_experts", "gdn_norm_out"}}};
    static const std::vector<std::string> none;
    const auto found = values.find(field);
    return found == values.end() ? none : found->second;
}

}  // namespace moe
