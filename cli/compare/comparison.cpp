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
#include "cli/compare/judge.h"
#include "cli/compare/own_choice.h"
#include "cli/compare/runner.h"
#include "cli/golden/golden.h"
#include "cli/ranks/losses.h"
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
        runner.run([&](std::size_t) -> Observer& { return recorder; });
        const std::chrono::duration<double> passed =
            std::chrono::steady_clock::now() - start;
        runs.push_back(recorder.seconds);
        for (int step = 0; step < kNumSteps; ++step)
            column.steps[step].taken_by = recorder.taken_by[step];
        totals.push_back(passed.count());
    }
    const auto count = double(runner.count());
    for (int step = 0; step < kNumSteps; ++step) {
        std::vector<double> samples;
        for (const Seconds& run : runs) samples.push_back(run[step]);
        column.steps[step].seconds = median(samples) / count;
    }
    column.seconds = median(totals) / count;
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

/// What the whole step makes: beside one micro-batch's gradients their sums, if there are
/// several, and the buffers.
std::map<Step, TensorMap> values_of_step(const std::vector<Runner::Results>& results,
                                         const UpdatedBuffers& updated) {
    std::map<Step, TensorMap> values;
    TensorMap main_grads;
    if (results.size() > 1)
        for (const Runner::Results& result : results)
            add_to_main_grads(main_grads, result.gradients.parameters);
    for (const auto& [name, sum] : main_grads)
        values[step_of_gradient(name)]["main_grad of " + name] = sum;
    const auto put = [&](const char* name, const Tensor& buffer) {
        if (buffer.defined())
            values[Step::routing][name] =
                transfer(buffer, {MemorySpace::host, buffer.dtype()});
    };
    put("expert_bias_updated", updated.expert_bias);
    put("qb_beta_updated", updated.qb_beta);
    return values;
}

/// A supplier's whole run.
struct Recording {
    ModuleSpec spec;  ///< with its router raised
    Recorded values;
    std::set<Step> beside;  ///< steps with values that no kernel of the result wrote
    Losses losses;
    std::int64_t kept_bytes = 0;
};

Recording record(const ComparisonRequest& request, const ModuleSpec& spec,
                 const TensorMap& parameters, const std::vector<MicroBatch>& inputs) {
    const std::string label = to_string(spec);
    request.progress(label + ": every value");
    Runner runner(request, spec, parameters, inputs);
    Recording recording;
    recording.spec = runner.spec();
    std::vector<ValueRecorder> recorders(
        inputs.size(), ValueRecorder([&](Step step) {
            request.progress(
                fmt::format("{}: every value, {} {}", label, circled(step), title(step)));
        }));
    const Runner::Watched watched =
        runner.run([&](std::size_t i) -> Observer& { return recorders[i]; });
    recording.losses = watched.losses;
    request.progress(label + ": unwatched");
    Runner unwatched(request, spec, parameters, inputs);
    const std::vector<Runner::Results> results = unwatched.run_unwatched();
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        recording.beside.insert(recorders[i].beside.begin(), recorders[i].beside.end());
        put_results(recorders[i].values, results[i]);
        recording.values.of_micro_batch.push_back(std::move(recorders[i].values));
    }
    recording.values.of_step = values_of_step(results, watched.updated);
    recording.kept_bytes = unwatched.kept_bytes();
    return recording;
}

/// The same with experts that are given, by micro-batch.
Recorded record_replayed(ComparisonRequest request, const ModuleSpec& spec,
                         const TensorMap& parameters, std::vector<MicroBatch> inputs,
                         const std::vector<Tensor>& topk_idx) {
    request.config.moe_enable_routing_replay = true;
    for (std::size_t i = 0; i < inputs.size(); ++i)
        inputs[i].target_topk_idx = topk_idx[i];
    return record(request, spec, parameters, inputs).values;
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

MoEConfig Comparison::running_config() const {
    return training ? config : without_losses(config);
}

Tensor random_gradient(const Shape& shape, std::uint64_t seed, std::int64_t micro_batch) {
    const Rng rng(seed, 200 + 1000 * std::uint64_t(micro_batch));
    Tensor gradient = Tensor::empty(shape, DType::f32);
    for (std::int64_t i = 0; i < gradient.numel(); ++i)
        gradient.data<float>()[i] =
            static_cast<float>(BFloat16(static_cast<float>(rng.normal(i))));
    return gradient;
}

Comparison run_comparison(const ComparisonRequest& request) {
    Comparison result;
    result.model = request.model;
    result.weights = request.weights;
    result.config = request.config;
    result.text = request.text;
    request.progress("drawing weights");
    const TensorMap parameters = request.parameters.empty()
                                     ? random_parameters(request.config, request.seed)
                                     : request.parameters;
    result.training = request.training;
    std::vector<TextTokens> texts = {request.text};
    texts.insert(texts.end(), request.more_text.begin(), request.more_text.end());
    result.micro_batches = std::int64_t(texts.size());
    std::vector<MicroBatch> inputs;
    for (const TextTokens& text : texts) {
        const Tensor hidden = embed_text(text, request.config.hidden_size, request.seed);
        inputs.push_back(
            {hidden,
             random_gradient(hidden.shape(), request.seed, std::int64_t(inputs.size())),
             by_sequence(text_ids(request.config, text), text.seq_len, text.micro_batch),
             request.target_topk_idx});
    }
    const std::int64_t tokens = inputs[0].hidden.dim(0) * inputs[0].hidden.dim(1);

    std::vector<ModuleSpec> specs = {ModuleSpec::uniform({"reference_cpu", DType::f64})};
    specs.insert(specs.end(), request.columns.begin(), request.columns.end());
    // By the dtype of the router: a column of bf16 has a reference of its own
    std::map<DType, Recorded> references;
    const auto reference_of = [&](const ModuleSpec& spec) -> const Recorded& {
        const ModuleSpec exact = exact_spec(spec);
        const DType router = exact.router.dtype;
        if (!references.contains(router))
            references[router] = record(request, exact, parameters, inputs).values;
        return references.at(router);
    };
    const auto bias = parameters.find("router.expert_bias");
    const Tensor expert_bias = bias == parameters.end() ? Tensor() : bias->second;
    std::vector<ComponentSpec> uniform_suppliers;
    for (const ModuleSpec& spec : specs) {
        ColumnOutcome column;
        column.label = to_string(spec);
        Recording recording = record(request, spec, parameters, inputs);
        column.spec = recording.spec;
        column.emulated = column.spec.is_emulated();
        column.losses = recording.losses;
        column.topk_idx =
            recording.values.of_micro_batch[0].at(Step::routing).at("topk_idx");
        column.kept_bytes = recording.kept_bytes;
        for (const Step step : recording.beside)
            column.steps[static_cast<int>(step) - 1].beside = true;
        if (result.columns.empty()) {
            references[column.spec.router.dtype] = std::move(recording.values);
        } else {
            const Recorded& exact = reference_of(column.spec);
            const OwnChoices own =
                own_choices(recording.values, exact, expert_bias, request.config);
            column.own_choices = own.tokens;
            judge(column, request.config, tokens, recording.values,
                  own.tokens == 0 ? exact
                                  : record_replayed(request, exact_spec(column.spec),
                                                    parameters, inputs, own.topk_idx));
            column.changed = count_changed_experts(
                recording.values, references.at(DType::f64), expert_bias, request.config);
        }
        if (!column.emulated) {
            request.progress(column.label + ": times");
            Runner runner(request, spec, parameters, inputs);
            time_steps(column, runner, request.repeats);
        }
        result.ok = result.ok && column.ok;
        result.columns.push_back(column);
        if (spec == ModuleSpec::uniform(spec.router))
            uniform_suppliers.push_back(spec.router);
    }

    const std::map<Step, TensorMap>& first = references.at(DType::f64).of_micro_batch[0];
    result.probs = first.at(Step::token_dropping).at("probs");
    result.routing_map = first.at(Step::token_dropping).at("routing_map");
    result.tokens_per_expert = first.at(Step::dispatch).at("tokens_per_expert");
    result.row_token = first.at(Step::dispatch).at("row_token");
    result.sizes = {tokens, result.row_token.numel()};
    const MoEConfig running = result.running_config();
    MoEConfig otherwise = running;
    otherwise.recompute_granularity.reset();
    for (ColumnOutcome& column : result.columns) {
        column.kept = kept_by_formula(running, result.sizes, column.spec);
        column.kept_otherwise = kept_by_formula(otherwise, result.sizes, column.spec);
    }
    result.golden = run_golden_cases(request, uniform_suppliers);
    for (const GoldenOutcome& outcome : result.golden)
        result.ok = result.ok && outcome.failed.empty();
    return result;
}

}  // namespace moe
