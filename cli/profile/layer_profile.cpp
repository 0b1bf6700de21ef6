#include "cli/profile/layer_profile.h"

#include <algorithm>
#include <map>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"

namespace moe::profile {

namespace observe = cuda_on_cpu::observe;

namespace {

/// N(0, 1), representable in bf16.
Tensor normal(const Shape& shape, std::uint64_t seed, std::uint64_t stream) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(seed, stream);
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] = float(BFloat16(float(rng.normal(std::uint64_t(i)))));
    return tensor;
}

/// Says of each launch during which step it came.
class StepWatcher : public Observer {
  public:
    /// A fused kernel is its first step's.
    void on_time(const Steps& steps, double) override {
        steps_.resize(observe::launches_seen(), steps.first);
    }
    bool wants_values_beside() const override { return false; }
    void on_value(Step, const std::string& name, const TensorView& view) override {
        if (name == "dispatched_probs") num_rows_ = view.shape[0];
    }
    std::optional<Step> step_of(std::size_t launch) const {
        return launch < steps_.size() ? steps_[launch] : std::nullopt;
    }
    std::int64_t num_rows() const { return num_rows_; }

  private:
    std::vector<std::optional<Step>> steps_;
    std::int64_t num_rows_ = 0;
};

std::vector<StepProfile> by_step(const observe::Report& report,
                                 const StepWatcher& watcher) {
    std::map<int, StepProfile> steps;
    for (std::size_t i = 0; i < report.launches.size(); ++i) {
        const observe::LaunchReport& launch = report.launches[i];
        const std::optional<Step> step = watcher.step_of(i);
        StepProfile& profile = steps[step ? int(*step) : kNumSteps + 1];
        profile.step = step;
        auto use = std::find_if(
            profile.kernels.begin(), profile.kernels.end(),
            [&](const KernelUse& each) { return each.kernel == launch.kernel; });
        if (use == profile.kernels.end())
            use = profile.kernels.insert(use, {launch.kernel, 0, {}, 0, 0});
        ++use->launches;
        use->counters += launch.counters;
        use->threads = std::max(use->threads, launch.threads);
        use->smem = std::max(use->smem, launch.smem);
    }
    std::vector<StepProfile> result;
    for (auto& [number, step] : steps) result.push_back(std::move(step));
    return result;
}

}  // namespace

std::int64_t StepProfile::launches() const {
    std::int64_t all = 0;
    for (const KernelUse& use : kernels) all += use.launches;
    return all;
}

Counters StepProfile::sum() const {
    Counters all;
    for (const KernelUse& use : kernels) all += use.counters;
    return all;
}

LayerProfile profile_layer(const LayerRequest& request) {
    const MoEConfig& config = request.config;
    const Shape shape = {request.seq_length, request.micro_batch_size,
                         config.hidden_size};
    MoELayer layer(config, request.spec, random_parameters(config, request.seed));
    const Tensor hidden = normal(shape, request.seed, 300);
    const Tensor doutput = normal(shape, request.seed, 301);

    StepWatcher watcher;
    const RunContext context{.training = true, .observer = &watcher};
    observe::start({.races = request.races});
    const MoELayer::Forward forward = layer.forward(hidden, {}, context);
    const MoELayer::Gradients gradients = layer.backward(doutput, forward.saved, context);
    observe::stop();

    LayerProfile result{layer.spec(), {}, {}, observe::report()};
    result.sizes = {request.seq_length * request.micro_batch_size, watcher.num_rows()};
    result.steps = by_step(result.report, watcher);
    const Floors floors(config, result.sizes,
                        formats_of(config, result.spec.experts.dtype));
    for (StepProfile& step : result.steps)
        if (step.step) step.floor = floors.step(*step.step);
    return result;
}

bool belongs_to(std::optional<Step> step, const std::string& component) {
    if (component == "layer") return true;
    if (!step) return false;
    // Step n is undone by step 21 - n
    const int forward = std::min(int(*step), kNumSteps + 1 - int(*step));
    const Step of = Step(forward);
    if (component == "shared_experts") return of == Step::shared_experts;
    if (component == "dispatcher") return of == Step::dispatch || of == Step::combine;
    if (component == "router") return of >= Step::gating && of <= Step::auxiliary_losses;
    return of >= Step::fc1 && of <= Step::fc2;
}

}  // namespace moe::profile
