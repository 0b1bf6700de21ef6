// comparison.cpp: run the layer in every supplier and hold each step against fp64.

#include "cli/compare/comparison.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "cli/compare/closeness.h"
#include "cli/compare/given.h"
#include "cli/golden/golden.h"
#include "core/kept_bytes.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"

namespace moe {
namespace {

using Seconds = std::array<double, kNumSteps>;

/// Copies of all intermediate values, by step.
class ValueRecorder : public Observer {
  public:
    /// @param say  called with each step that has come
    explicit ValueRecorder(std::function<void(Step)> say) : say_(std::move(say)) {}
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (!values.contains(step)) say_(step);
        values[step][name] = transfer(view, {MemorySpace::host, view.dtype});
    }
    void on_value_beside(Step step, const std::string& name,
                         const TensorView& view) override {
        beside.insert(step);
        on_value(step, name, view);
    }
    std::map<Step, TensorMap> values;
    std::set<Step> beside;  ///< steps with values that no kernel of the result wrote

  private:
    std::function<void(Step)> say_;
};

class TimeRecorder : public Observer {
  public:
    void on_time(const Steps& steps, double passed) override {
        const int first = static_cast<int>(steps.first);
        seconds[first - 1] += passed;
        for (int step = first + 1; step <= static_cast<int>(steps.last); ++step)
            taken_by[step - 1] = first;
    }
    std::array<int, kNumSteps> taken_by{};  // see StepOutcome
    Seconds seconds{};
};

/// One layer on the request's input.
class Runner {
  public:
    Runner(const ComparisonRequest& request, const ModuleSpec& spec,
           const TensorMap& parameters, const Tensor& hidden, const Tensor& doutput)
        : layer_(request.config, spec, parameters), hidden_(hidden), doutput_(doutput) {
        const TextTokens& text = request.text;
        given_.token_ids =
            by_sequence(text_ids(request.config, text), text.seq_len, text.micro_batch);
        given_.target_topk_idx = request.target_topk_idx;
    }

    /// Forward and backward, watched.
    Losses run(Observer& observer) {
        RunContext context = given_;
        context.observer = &observer;
        auto forward = layer_.forward(hidden_, {}, context);
        layer_.backward(doutput_, forward.saved, context);
        layer_.update_expert_bias();
        layer_.reset_global_aux_loss_tracker();
        return forward.losses.read();
    }

    struct Results {
        Tensor output;  ///< (S, B, H)
        MoELayer::Gradients gradients;
    };
    /// The same, and nobody watches.
    Results run_unwatched() {
        const auto forward = layer_.forward(hidden_, {}, given_);
        return {forward.output, layer_.backward(doutput_, forward.saved, given_)};
    }
    std::int64_t kept_bytes() { return count_kept_bytes(layer_, hidden_, given_); }

    const ModuleSpec& spec() const { return layer_.spec(); }

  private:
    MoELayer layer_;
    Tensor hidden_, doutput_;
    RunContext given_;  // besides the tokens
};

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
}

void time_steps(ColumnOutcome& column, Runner& runner, int repeats) {
    std::vector<Seconds> runs;
    std::vector<double> totals;
    for (int repeat = 0; repeat < repeats; ++repeat) {
        TimeRecorder recorder;
        const auto start = std::chrono::steady_clock::now();
        runner.run(recorder);
        const std::chrono::duration<double> passed =
            std::chrono::steady_clock::now() - start;
        runs.push_back(recorder.seconds);
        for (int step = 0; step < kNumSteps; ++step)
            column.steps[step].taken_by = recorder.taken_by[step];
        totals.push_back(passed.count());
    }
    for (int step = 0; step < kNumSteps; ++step) {
        std::vector<double> samples;
        for (const Seconds& run : runs) samples.push_back(run[step]);
        column.steps[step].seconds = median(samples);
    }
    column.seconds = median(totals);
}

/// The layer's results are those of a run that nobody watched; they take the places of
/// the same values of the run in which every value was looked at.
void put_results(std::map<Step, TensorMap>& values, const Runner::Results& results) {
    const auto put = [&](Step step, const std::string& name, const Tensor& result) {
        Tensor& place = values[step][name];
        const Tensor copy = transfer(result, {MemorySpace::host, result.dtype()});
        place = place.defined() ? copy.reshaped(place.shape()) : copy;
    };
    const bool shared = values.contains(Step::shared_experts_backward);
    put(Step::combine, "output", results.output);
    put(shared ? Step::shared_experts_backward : Step::gating_backward,
        shared ? "d_hidden_states" : "d_hidden_states_router",
        results.gradients.hidden_states);
    for (const auto& [name, gradient] : results.gradients.parameters)
        put(step_of_gradient(name), "d_" + name, gradient);
}

/// How close a choice was that differs: it may lie below what the precision can tell
/// apart.
std::string describe_choice(const Closeness& closeness, const Tensor& logits,
                            std::int64_t topk) {
    if (closeness.worst < 0) return "";
    const std::vector<double> x = to_doubles(logits);  // (T, E)
    const std::int64_t token = closeness.worst / topk, E = logits.dim(1);
    for (double expert : {closeness.worst_got, closeness.worst_expected})
        if (!(expert >= 0.0 && expert < double(E))) return "; there is no such expert";
    const double gap = std::abs(x[token * E + std::int64_t(closeness.worst_got)] -
                                x[token * E + std::int64_t(closeness.worst_expected)]);
    return fmt::format("; in fp64 the logits of these two experts differ by {:.1e}", gap);
}

/// Values without the rows that only fill experts up to a multiple: which tokens they are
/// carries no meaning, and tiers differ in it.
std::map<Step, TensorMap> without_padding(std::map<Step, TensorMap> values) {
    const std::vector<double> probs =
        to_doubles(values.at(Step::dispatch).at("dispatched_probs"));
    const auto N = std::int64_t(probs.size());
    const auto select = [&](const Tensor& tensor) {
        const std::size_t row_bytes = tensor.size_bytes() / std::size_t(N);
        Tensor selected = tensor.clone();
        std::int64_t count = 0;
        for (std::int64_t r = 0; r < N; ++r)
            if (probs[r] != 0.0)
                std::memcpy(
                    static_cast<std::byte*>(selected.view().bytes) + count++ * row_bytes,
                    static_cast<const std::byte*>(tensor.view().bytes) + r * row_bytes,
                    row_bytes);
        return selected.first(count);
    };
    for (auto& [step, tensors] : values)
        if (step >= Step::dispatch && step <= Step::dispatch_backward)
            for (auto& [name, tensor] : tensors)
                if (!tensor.shape().empty() && tensor.dim(0) == N && N > 0)
                    tensor = select(tensor);
    return values;
}

/// Those that chose: random ones, if they took the place of the gating's.
const Tensor& used_logits(const TensorMap& gating) {
    const auto random = gating.find("random_logits");
    return random == gating.end() ? gating.at("logits") : random->second;
}

void judge_steps(ColumnOutcome& column, const MoEConfig& config, std::int64_t num_tokens,
                 const std::map<Step, TensorMap>& values,
                 const std::map<Step, TensorMap>& reference) {
    const DType dtype = column.spec.coarsest_dtype();
    for (const auto& [step, tensors] : reference) {
        StepOutcome& outcome = column.steps[static_cast<int>(step) - 1];
        outcome.bound = tier_bound(config, dtype, is_backward(step));
        for (const auto& [name, expected] : tensors) {
            const Tensor& got = values.at(step).at(name);
            const Closeness closeness =
                measure_closeness(got, expected, noise_of(name, config, num_tokens));
            const bool exact = !is_floating(expected.dtype());
            const bool ok = closeness.within(exact ? 0.0 : outcome.bound);
            if (!ok && outcome.detail.empty())
                outcome.detail =
                    name + ": " + describe_worst(closeness, got, expected) +
                    (name == "topk_idx"
                         ? describe_choice(closeness,
                                           used_logits(reference.at(Step::gating)),
                                           expected.dim(1))
                         : "");
            if (exact)
                outcome.integers_equal = outcome.integers_equal && ok;
            else
                outcome.error = std::max(
                    outcome.error, ok || closeness.finite ? closeness.error : INFINITY);
            column.ok = column.ok && ok;
        }
    }
}

/// Every value of the layer in one supplier.
std::map<Step, TensorMap> record_values(const ComparisonRequest& request,
                                        const ModuleSpec& spec,
                                        const TensorMap& parameters, const Tensor& hidden,
                                        const Tensor& doutput) {
    request.progress(to_string(spec) + ": every value");
    ValueRecorder recorder([](Step) {});
    Runner(request, spec, parameters, hidden, doutput).run(recorder);
    Runner unwatched(request, spec, parameters, hidden, doutput);
    put_results(recorder.values, unwatched.run_unwatched());
    return std::move(recorder.values);
}

std::vector<GoldenOutcome> run_golden_cases(const ComparisonRequest& request,
                                            const std::vector<ComponentSpec>& suppliers) {
    namespace fs = std::filesystem;
    std::vector<std::string> files;
    if (!request.golden_folder.empty() && fs::is_directory(request.golden_folder))
        for (const auto& entry : fs::directory_iterator(request.golden_folder))
            if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    if (files.empty()) return {};
    std::sort(files.begin(), files.end());

    std::vector<GoldenOutcome> outcomes;
    for (const ComponentSpec& supplier : suppliers) {
        GoldenOutcome outcome;
        outcome.label = to_string(supplier);
        for (const std::string& file : files) {
            request.progress(fmt::format("golden cases, {}: {} of {}", outcome.label,
                                         ++outcome.total, files.size()));
            GoldenCase golden = load_golden(file);
            // Files leave this open: the kernels of the layer that was compared
            golden.config.moe_permute_fusion = request.config.moe_permute_fusion;
            golden.config.moe_router_fusion = request.config.moe_router_fusion &&
                                              !golden.config.is_quantile_balancing();
            golden.config.moe_grouped_gemm = request.config.moe_grouped_gemm;
            const CaseResult result =
                verify_golden(golden, ModuleSpec::uniform(supplier));
            result.ok ? void(++outcome.passed)
                      : outcome.failed.push_back(result.case_name + ": " +
                                                 begins_at(*result.first_deviation()));
            for (const TensorCheck& check : result.checks) {
                const double share = check.bound > 0.0 ? check.error / check.bound : 0.0;
                if (share <= outcome.worst_share) continue;
                outcome.worst_share = share;
                outcome.worst_case = result.case_name + ": " + check.name;
            }
        }
        outcomes.push_back(outcome);
    }
    return outcomes;
}

}  // namespace

std::string begins_at(Step step) {
    return fmt::format("begins at {} {}", circled(step), title(step));
}

Step step_of_gradient(const std::string& parameter) {
    if (parameter.starts_with("router.")) return Step::gating_backward;
    if (parameter.starts_with("shared_experts.")) return Step::shared_experts_backward;
    if (parameter.starts_with("fc1_latent_proj.")) return Step::dispatch_backward;
    if (parameter.starts_with("fc2_latent_proj.")) return Step::combine_backward;
    return parameter.starts_with("experts.linear_fc1.") ? Step::fc1_backward
                                                        : Step::fc2_backward;
}

std::string ColumnOutcome::time_of(Step step) const {
    const StepOutcome& outcome = at(step);
    return outcome.taken_by > 0 && outcome.seconds == 0.0
               ? "in " + circled(static_cast<Step>(outcome.taken_by))
               : fmt::format("{:.2f} ms", 1e3 * outcome.seconds);
}

std::optional<Step> ColumnOutcome::first_deviation() const {
    for (int number = 1; number <= kNumSteps; ++number)
        if (const auto step = static_cast<Step>(number);
            !at(step).ok() || !at(step).detail.empty())
            return step;
    return std::nullopt;
}

ModuleSpec exact_spec(const ModuleSpec& spec) {
    ModuleSpec exact = ModuleSpec::uniform({"reference_cpu", DType::f64});
    if (spec.router.dtype == DType::bf16) exact.router.dtype = DType::bf16;
    return exact;
}

Tensor random_gradient(const Shape& shape, std::uint64_t seed) {
    const Rng rng(seed, 200);
    Tensor gradient = Tensor::empty(shape, DType::f32);
    for (std::int64_t i = 0; i < gradient.numel(); ++i)
        gradient.data<float>()[i] =
            static_cast<float>(BFloat16(static_cast<float>(rng.normal(i))));
    return gradient;
}

Comparison run_comparison(const ComparisonRequest& request) {
    Comparison result;
    result.model = request.model;
    result.config = request.config;
    result.text = request.text;
    request.progress("drawing weights");
    const TensorMap parameters = random_parameters(request.config, request.seed);
    const Tensor hidden =
        embed_text(request.text, request.config.hidden_size, request.seed);
    const Tensor doutput = random_gradient(hidden.shape(), request.seed);

    std::vector<ModuleSpec> specs = {ModuleSpec::uniform({"reference_cpu", DType::f64})};
    specs.insert(specs.end(), request.columns.begin(), request.columns.end());
    std::map<Step, TensorMap> reference, of_bf16_router;
    const auto reference_of = [&](const ModuleSpec& spec) -> const auto& {
        const ModuleSpec exact = exact_spec(spec);
        if (exact == specs.front()) return reference;
        if (of_bf16_router.empty())
            of_bf16_router = record_values(request, exact, parameters, hidden, doutput);
        return of_bf16_router;
    };
    const auto bias = parameters.find("router.expert_bias");
    Tensor keys;  // (T, E) of fp64
    std::vector<ComponentSpec> uniform_suppliers;
    for (const ModuleSpec& spec : specs) {
        ColumnOutcome column;
        column.label = to_string(spec);
        request.progress(column.label + ": every value");
        Runner runner(request, spec, parameters, hidden, doutput);
        column.spec = runner.spec();
        column.emulated = column.spec.is_emulated();
        ValueRecorder recorder([&](Step step) {
            request.progress(fmt::format("{}: every value, {} {}", column.label,
                                         circled(step), title(step)));
        });
        column.losses = runner.run(recorder);
        for (const Step step : recorder.beside)
            column.steps[static_cast<int>(step) - 1].beside = true;
        request.progress(column.label + ": unwatched");
        Runner unwatched(request, spec, parameters, hidden, doutput);
        put_results(recorder.values, unwatched.run_unwatched());
        column.kept_bytes = unwatched.kept_bytes();

        if (result.columns.empty()) {
            reference = std::move(recorder.values);
            keys = selection_keys(used_logits(reference.at(Step::gating)),
                                  bias == parameters.end() ? Tensor() : bias->second,
                                  request.config);
        } else {
            const std::map<Step, TensorMap>& exact = reference_of(column.spec);
            const bool padded = request.config.moe_router_padding_for_quantization;
            judge_steps(column, request.config, hidden.dim(0) * hidden.dim(1),
                        padded ? without_padding(recorder.values) : recorder.values,
                        padded ? without_padding(exact) : exact);
            column.changed =
                count_changed_experts(recorder.values.at(Step::routing).at("topk_idx"),
                                      reference.at(Step::routing).at("topk_idx"), keys);
        }
        if (!column.emulated) {
            request.progress(column.label + ": times");
            time_steps(column, runner, request.repeats);
        }
        result.ok = result.ok && column.ok;
        result.columns.push_back(column);
        if (spec == ModuleSpec::uniform(spec.router))
            uniform_suppliers.push_back(spec.router);
    }

    result.probs = reference.at(Step::token_dropping).at("probs");
    result.routing_map = reference.at(Step::token_dropping).at("routing_map");
    result.topk_idx = reference.at(Step::routing).at("topk_idx");
    result.tokens_per_expert = reference.at(Step::dispatch).at("tokens_per_expert");
    result.row_token = reference.at(Step::dispatch).at("row_token");
    result.sizes = {hidden.dim(0) * hidden.dim(1), result.row_token.numel()};
    for (ColumnOutcome& column : result.columns)
        column.kept = kept_by_formula(result.config, result.sizes, column.spec);
    result.golden = run_golden_cases(request, uniform_suppliers);
    for (const GoldenOutcome& outcome : result.golden)
        result.ok = result.ok && outcome.failed.empty();
    return result;
}

}  // namespace moe
