#include "cli/wire/model.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace moe::wire {
namespace {

constexpr std::int64_t kMostRanks = 64;
// As optimized_gpu: choices, not maps, and slots for each source, not counts
constexpr Sending kSending = {DType::bf16, false, true};

double seconds_of(const Link& link, double bytes, int rounds) {
    return bytes > 0.0 ? rounds * link.alpha + bytes / link.beta : 0.0;
}

/// FLOP of the experts' products for one token, forward; backward has twice as many.
double products_of_token(const MoEConfig& config) {
    const double matrices = config.gated_linear_unit ? 3.0 : 2.0;
    return 2.0 * matrices * double(config.moe_router_topk) *
           double(config.latent_size()) * double(config.ffn());
}

void require_even_routing(const MoEConfig& config) {
    if (config.moe_expert_capacity_factor)
        reject("moe_expert_capacity_factor", *config.moe_expert_capacity_factor,
               "must be none: the model drops no row");
    if (config.moe_router_padding_for_quantization)
        reject("moe_router_padding_for_quantization", "true",
               "must be false: the model pads nothing");
}

}  // namespace

double Estimate::seconds(bool backward) const {
    return backward ? steps[2].seconds + steps[3].seconds
                    : steps[0].seconds + steps[1].seconds;
}

double Estimate::nvlink_bytes() const {
    double bytes = 0.0;
    for (const Sent& sent : steps) bytes += sent.nvlink_bytes;
    return bytes;
}

double Estimate::network_bytes() const {
    double bytes = 0.0;
    for (const Sent& sent : steps) bytes += sent.network_bytes;
    return bytes;
}

int rounds_of(const std::string& dispatcher, Step step) {
    const bool dispatch = step == Step::dispatch, back = step == Step::dispatch_backward;
    // Counts or maps, rows, probabilities; rows alone; rows and probabilities
    if (dispatcher != "flex") return dispatch ? 3 : back ? 2 : 1;
    // A push and a barrier; a barrier and a pull, of rows and then of probabilities. How
    // many tokens there are the ranks know
    return back ? 3 : 2;
}

Estimate estimate(const MoEConfig& config, std::int64_t tokens, const Machine& machine) {
    MOE_CHECK_EQ(*config.expert_tensor_parallel_size, 1);
    Estimate result;
    result.dispatcher = config.moe_token_dispatcher_type;
    result.ranks = config.expert_model_parallel_size;
    const double others = double(result.ranks - 1);
    const double near = double(std::min(result.ranks, machine.gpus_per_node) - 1);
    const double far = others - near;
    result.rows = balanced_rows_per_token(config);
    const double rows_per_link = others > 0.0 ? result.rows / others : 0.0;
    result.network_rows = rows_per_link * far;
    for (std::size_t i = 0; i < kExchangeSteps.size(); ++i) {
        const LinkBytes each = link_bytes(config, kExchangeSteps[i], kSending);
        const double bytes =
            double(tokens) * rows_per_link * double(each.row) + double(each.once);
        Sent& sent = result.steps[i];
        sent.nvlink_bytes = near * bytes;
        sent.network_bytes = far * bytes;
        sent.rounds = rounds_of(result.dispatcher, kExchangeSteps[i]);
        sent.seconds =
            std::max(seconds_of(machine.nvlink, sent.nvlink_bytes, sent.rounds),
                     seconds_of(machine.network, sent.network_bytes, sent.rounds));
    }
    return result;
}

Outlook look_ahead(const std::string& model, const MoEConfig& config,
                   const std::vector<std::string>& dispatchers, std::int64_t tokens,
                   const Machine& machine) {
    require_even_routing(config);
    Outlook outlook{model, config, tokens, 0.0, {}, {}};
    outlook.config.moe_token_dispatcher_type = "alltoall";  // which has every feature
    outlook.config.finalize();
    outlook.experts_seconds =
        3.0 * double(tokens) * products_of_token(outlook.config) / machine.products;
    for (const std::string& dispatcher : dispatchers)
        for (std::int64_t ranks = 2; ranks <= kMostRanks; ranks *= 2) {
            const bool fills_nodes =
                ranks <= machine.gpus_per_node || ranks % machine.gpus_per_node == 0;
            if (outlook.config.num_experts() % ranks != 0 || !fills_nodes) continue;
            MoEConfig shared = config;
            shared.moe_token_dispatcher_type = dispatcher;
            shared.expert_model_parallel_size = ranks;
            try {
                shared.finalize();
            } catch (const InputError& error) {
                outlook.left_out.push_back(dispatcher + ": " + error.what());
                break;
            }
            outlook.estimates.push_back(estimate(shared, tokens, machine));
        }
    std::ranges::stable_sort(outlook.estimates, {}, &Estimate::ranks);
    return outlook;
}

}  // namespace moe::wire
