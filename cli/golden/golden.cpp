// golden.cpp: run a golden case and compare. Reading it is in golden_file.cpp.

#include "cli/golden/golden.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "cli/compare/closeness.h"
#include "cli/compare/comparison.h"
#include "cli/golden/rounding.h"
#include "cli/ranks/processes.h"
#include "core/micro_batches.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/rank_generator.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

Placement on_host(const TensorView& view) {
    return {MemorySpace::host, view.dtype};
}

/// Keeps the intermediate values that golden files may hold.
class Recorder : public Observer {
  public:
    /// @param prefix  of the micro-batch
    Recorder(TensorMap& values, const std::string& prefix)
        : values_(values), prefix_(prefix + "expect.") {}
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (!is_backward(step)) values_[prefix_ + name] = transfer(view, on_host(view));
    }

  private:
    TensorMap& values_;
    std::string prefix_;
};

/// The step that makes what a golden file expects. What moves the buffers is
/// routing's; of a sum of gradients it is the last that adds to it.
Step step_of_expectation(const std::string& full_name) {
    const std::string name = without_micro_batch(full_name);
    static const std::map<std::string, Step> known = {
        {"expect.logits", Step::gating},
        {"expect.expert_bias_updated", Step::routing},
        {"expect.qb_beta_updated", Step::routing},
        {"expect.probs", Step::token_dropping},
        {"expect.routing_map", Step::token_dropping},
        {"expect.expert_output", Step::fc2},
        {"expect.output", Step::combine},
        {"expect.grad.hidden_states", Step::shared_experts_backward}};
    if (const auto found = known.find(name); found != known.end()) return found->second;
    const std::string gradient = "expect.grad.";
    if (name.starts_with(gradient)) return step_of_gradient(name.substr(gradient.size()));
    // The others are what a dispatcher hands over, and counts.
    return name.starts_with("expect.loss.") ? Step::auxiliary_losses : Step::dispatch;
}

/// Takes the larger bound where rounding alone moves the tensor further.
void allow_rounding(TensorCheck& check, const Closeness& closeness, double distance) {
    const double allowed = kRoundingFactor * distance;
    const bool expects_zero = !std::isfinite(closeness.error);
    if (expects_zero && closeness.distance > allowed) return;
    const double norm = expects_zero ? 1.0 : closeness.distance / closeness.error;
    if (!expects_zero && allowed / norm <= check.bound) return;
    check.error = closeness.distance / norm;
    check.bound = allowed / norm;
    check.bound_from = BoundFrom::rounding;
}

TensorCheck check(const GoldenCase& golden, const std::string& name,
                  const Tensor& expected, const TensorMap& got, DType dtype,
                  const std::function<double()>& rounding_distance) {
    TensorCheck result{.name = name,
                       .detail = "the layer has no such value",
                       .step = step_of_expectation(name)};
    const auto found = got.find(name);
    if (found == got.end()) return result;
    const Tensor& value = found->second;
    const Closeness closeness = measure_closeness(value, expected);
    result.error = closeness.error;

    if (is_floating(expected.dtype())) {
        double source_error = 0.0;
        if (const auto errors = golden.source_errors.find(to_string(dtype));
            errors != golden.source_errors.end())
            if (const auto error = errors->second.find(name);
                error != errors->second.end())
                source_error = error->second;
        const std::string kind = without_micro_batch(name);
        result.bound = golden_bound(dtype, kind, source_error);
        if (result.bound > golden_bound(dtype, kind, 0.0))
            result.bound_from = BoundFrom::source_error;
        const bool comparable = closeness.same_shape && closeness.finite;
        if (comparable && !closeness.within(result.bound))
            allow_rounding(result, closeness, rounding_distance());
    }
    result.ok = closeness.same_shape && closeness.finite && result.error <= result.bound;
    result.detail = result.ok ? "" : describe_worst(closeness, value, expected);
    return result;
}

/// One rank's layer, forward and (with grad_output) backward, micro-batch by micro-batch.
/// @param parameters  the rank's shards
TensorMap run_rank(const GoldenCase& golden, const GoldenRank& rank,
                   const ModuleSpec& spec, const TensorMap& parameters,
                   const GroupsPtr& groups) {
    TensorMap values, main_grads;
    Losses means;
    MoELayer layer(golden.config, spec, parameters, groups);
    const std::vector<GoldenInput> inputs = rank.micro_batches();
    const auto count = std::int64_t(inputs.size());
    for (std::int64_t i = 0; i < count; ++i) {
        const GoldenInput& input = inputs[i];
        const std::string prefix = micro_batch_prefix(i, count);
        Recorder recorder(values, prefix);
        const RunContext context{
            .training = golden.training,
            .main_loss_backward_scale = main_loss_backward_scale(golden.config, count),
            .observer = &recorder,
            .token_ids = input.token_ids,
            .target_topk_idx = input.target_topk_idx};
        auto forward = layer.forward(input.hidden_states, input.padding_mask, context);
        values[prefix + "expect.output"] = forward.output;
        const Losses losses = forward.losses.read();
        for (const auto& [name, loss] : losses)
            values[prefix + "expect.loss." + name] = Tensor::from<double>({}, {loss});
        add_to_means(means, losses, count);
        if (!input.grad_output.defined()) continue;
        auto gradients = layer.backward(input.grad_output, forward.saved, context);
        values[prefix + "expect.grad.hidden_states"] = gradients.hidden_states;
        add_to_main_grads(main_grads, gradients.parameters);
    }
    for (const auto& [name, loss] : means)
        values["expect.loss." + name] = Tensor::from<double>({}, {loss});
    for (const auto& [name, gradient] : main_grads)
        values["expect.grad." + name] = gradient;
    if (!golden.training) return values;
    const UpdatedBuffers updated = finish_optimizer_step(layer);
    if (updated.expert_bias.defined())
        values["expect.expert_bias_updated"] = updated.expert_bias;
    if (updated.qb_beta.defined()) values["expect.qb_beta_updated"] = updated.qb_beta;
    return values;
}

/// The supplier with the router that the file asks for.
ModuleSpec with_router_of_source(const GoldenCase& golden, ModuleSpec spec) {
    if (golden.source_dtype && !golden.config.moe_router_dtype)
        spec.router.dtype = *golden.source_dtype;
    spec.raise_router_dtype(golden.config);
    return spec;
}

/// What has no word in an exchange for how much there is of something wants as much of it
/// from every rank: AllGather of tokens, AlltoAll of rows padded to the capacity.
void require_equal_ranks(const GoldenCase& golden) {
    const MoEConfig& config = golden.config;
    const bool allgather = config.moe_token_dispatcher_type == "allgather";
    if (!allgather && !config.moe_pad_expert_input_to_capacity) return;
    const auto amounts = [&](int rank) {
        std::vector<std::int64_t> amounts;
        for (const GoldenInput& input : golden.ranks[rank].micro_batches()) {
            const Tensor& hidden = input.hidden_states;
            const std::int64_t tokens = hidden.dim(0) * hidden.dim(1);
            amounts.push_back(allgather ? tokens : get_capacity(config, tokens));
        }
        return amounts;
    };
    const auto sizes = distributed::parallel_sizes(config, int(golden.ranks.size()));
    for (const auto& group :
         distributed::RankGenerator::experts(sizes).get_ranks("tp-ep"))
        for (const int rank : group) {
            if (amounts(rank) == amounts(group[0])) continue;
            const std::string found =
                fmt::format("rank {} has {}, rank {} {}", group[0],
                            fmt::join(amounts(group[0]), " then "), rank,
                            fmt::join(amounts(rank), " then "));
            if (allgather)
                reject(
                    "moe_token_dispatcher_type", "allgather",
                    "needs as many tokens on every rank that exchanges them: " + found);
            reject(
                "moe_pad_expert_input_to_capacity", true,
                "needs the same capacity on every rank that exchanges tokens: " + found);
        }
}

}  // namespace

std::vector<GoldenInput> GoldenRank::micro_batches() const {
    std::vector<GoldenInput> all = {*this};
    all.insert(all.end(), more_micro_batches.begin(), more_micro_batches.end());
    return all;
}

void GoldenRank::change_inputs(const std::function<void(GoldenInput&)>& change) {
    change(*this);
    for (GoldenInput& input : more_micro_batches) change(input);
}

std::string micro_batch_prefix(std::int64_t micro_batch, std::int64_t micro_batches) {
    return micro_batches == 1 ? "" : fmt::format("micro_batch.{}.", micro_batch);
}

std::string without_micro_batch(const std::string& name) {
    const std::string prefix = "micro_batch.";
    return name.starts_with(prefix) ? name.substr(name.find('.', prefix.size()) + 1)
                                    : name;
}

std::optional<Step> CaseResult::first_deviation() const {
    std::optional<Step> first;
    for (const TensorCheck& check : checks)
        if (!check.ok) first = std::min(first.value_or(check.step), check.step);
    return first;
}

std::vector<TensorMap> run_golden(const GoldenCase& golden, const ModuleSpec& supplier,
                                  distributed::Communicator* world) {
    const ModuleSpec spec = with_router_of_source(golden, supplier);
    if (golden.ranks.size() == 1)
        return {run_rank(golden, golden.ranks[0], spec, golden.parameters, nullptr)};
    const auto run = [&](distributed::Communicator& of_all) {
        const auto groups = distributed::make_process_groups(of_all, golden.config);
        return run_rank(
            golden, golden.ranks[of_all.rank()], spec,
            distributed::shard_parameters(golden.config, golden.parameters, *groups),
            groups);
    };
    if (world != nullptr) {
        MOE_CHECK_EQ(world->size(), int(golden.ranks.size()));
        TensorMap mine = run(*world);
        for (auto& [name, value] : mine) value = transfer(value, on_host(value));
        return gather_tensors(*world, mine);
    }
    std::vector<TensorMap> values(golden.ranks.size());
    distributed::run_ranks(
        int(golden.ranks.size()), [&](distributed::Communicator& thread) {
            try {
                values[thread.rank()] = run(thread);
            } catch (const distributed::CommunicatorError&) {
                throw;  // names its rank
            } catch (const InputError& error) {
                throw InputError(fmt::format("rank {}: {}", thread.rank(), error.what()));
            }
        });
    return values;
}

CaseResult verify_golden(const GoldenCase& golden, const ModuleSpec& supplier,
                         distributed::Communicator* world) {
    const ModuleSpec spec = with_router_of_source(golden, supplier);
    const bool raised = golden.config.moe_router_dtype.has_value();
    CaseResult result{golden.name, raised ? supplier : spec, true, {}};
    DType dtype = spec.coarsest_dtype();
    // What is expected was rounded as well
    if (golden.source_dtype && size_of(*golden.source_dtype) < size_of(dtype))
        dtype = *golden.source_dtype;
    const std::vector<TensorMap> got = run_golden(golden, spec, world);
    std::optional<RoundingDistances> rounding;  // measured where something asks for it
    for (std::size_t rank = 0; rank < got.size(); ++rank)
        for (const auto& [name, expected] : golden.ranks[rank].expected) {
            TensorCheck checked = check(golden, name, expected, got[rank], dtype, [&] {
                if (!rounding) rounding = measure_rounding(golden, dtype);
                return (*rounding)[rank][name];
            });
            if (got.size() > 1) checked.name = fmt::format("rank {} {}", rank, name);
            result.ok = result.ok && checked.ok;
            result.checks.push_back(std::move(checked));
        }
    return result;
}

DispatcherCase through_dispatcher(const GoldenCase& golden, const std::string& type) {
    DispatcherCase result{golden, {}};
    if (type != golden.config.moe_token_dispatcher_type) {
        result.golden.config = golden.config.with_dispatcher(type);
        result.golden.config.finalize();
    }
    require_equal_ranks(result.golden);
    if (type == golden.config.moe_token_dispatcher_type) return result;
    for (const char* name : {"expect.sent_hidden_states", "expect.received_hidden_states",
                             "expect.input_splits", "expect.output_splits",
                             "expect.output_splits_tp", "expect.dispatched_hidden_states",
                             "expect.dispatched_probs", "expect.expert_output"}) {
        std::size_t erased = 0;
        for (GoldenRank& rank : result.golden.ranks)
            erased += std::erase_if(rank.expected, [name](const auto& item) {
                return without_micro_batch(item.first) == name;
            });
        if (erased > 0) result.left_out.push_back(name);
    }
    return result;
}

}  // namespace moe
