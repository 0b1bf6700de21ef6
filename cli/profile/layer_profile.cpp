#include "cli/profile/layer_profile.h"

#include <algorithm>
#include <map>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"

namespace moe::profile {

namespace observe = cuda_on_cpu::observe;

namespace {

/// N(0, 1), representable in bf16, as `dtype`.
Tensor normal(const Shape& shape, DType dtype, std::uint64_t seed, std::uint64_t stream) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(seed, stream);
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] = float(BFloat16(float(rng.normal(std::uint64_t(i)))));
    return transfer(tensor, {MemorySpace::host, dtype});
}

/// Says of each launch during which step it came.
class StepWatcher : public Observer {
  public:
    void on_time(const Steps& steps, double) override {
        steps_.resize(observe::launches_seen(), steps);
    }
    bool wants_values_beside() const override { return false; }
    void on_value(Step, const std::string& name, const TensorView& view) override {
        if (name == "dispatched_probs") num_rows_ = view.shape[0];
    }
    std::optional<Steps> steps_of(std::size_t launch) const {
        return launch < steps_.size() ? steps_[launch] : std::nullopt;
    }
    std::int64_t num_rows() const { return num_rows_; }

  private:
    std::vector<std::optional<Steps>> steps_;
    std::int64_t num_rows_ = 0;
};

std::vector<StepProfile> by_step(const observe::Report& report,
                                 const StepWatcher& watcher) {
    std::map<std::pair<int, int>, StepProfile> steps;  // fused ones before their first
    for (std::size_t i = 0; i < report.launches.size(); ++i) {
        const observe::LaunchReport& launch = report.launches[i];
        const std::optional<Steps> at = watcher.steps_of(i);
        StepProfile& profile = steps[at ? std::pair{int(at->first), -int(at->last)}
                                        : std::pair{kNumSteps + 1, 0}];
        profile.steps = at;
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
    for (auto& [key, step] : steps) result.push_back(std::move(step));
    return result;
}

/// What a tier's steps must move at the least, as it divides them.
class TierFloors {
  public:
    /// @param dense  the dispatcher took dense maps
    TierFloors(const MoEConfig& config, const LayerProfile& profile, bool dense)
        : floors_(config, profile.sizes, formats(config, profile, dense)),
          rows_(!dense && config.moe_permute_fusion ? Floors::Rows::gathered
                                                    : Floors::Rows::dispatched),
          fuses_losses_(!dense && config.moe_router_fusion),
          fuses_dh_(std::any_of(
              profile.steps.begin(), profile.steps.end(),
              [](const StepProfile& step) { return step.steps == kFusedDh; })) {}

    Floor of(const Steps& steps) const {
        const bool gathers = rows_ == Floors::Rows::gathered;
        if (steps == Steps(Step::fc1, Step::activation))
            return floors_.fc1_and_activation(rows_);
        if (steps == Step::auxiliary_losses && fuses_losses_) return {};  // ③ read all
        if (steps == kFusedDh) return floors_.experts_dh(rows_);
        if (steps == Step::fc2_backward && fuses_dh_) return floors_.experts_dw2(rows_);
        if (steps == Step::fc1_backward && gathers)
            return floors_.experts_dx() + floors_.experts_dw1(rows_);
        if (steps == Step::dispatch && gathers) return floors_.row_map();
        if (steps == Steps(Step::auxiliary_losses_backward, Step::routing_backward))
            return floors_.losses_to_routing_backward();
        return floors_.step(steps.first);
    }

  private:
    static inline const Steps kFusedDh = {Step::fc2_backward, Step::activation_backward};
    static Formats formats(const MoEConfig& config, const LayerProfile& profile,
                           bool dense) {
        Formats formats = formats_of(config, profile.spec.experts.dtype);
        if (dense) return formats;
        formats.routing = RoutingForm::chosen;
        formats.ids = DType::i32;
        return formats;
    }

    Floors floors_;
    Floors::Rows rows_;
    bool fuses_losses_, fuses_dh_;
};

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
    // In the layer's own type: a router may take tokens as they are
    const DType dtype = request.spec.dispatcher.dtype;
    const Tensor hidden = normal(shape, dtype, request.seed, 300);
    const Tensor doutput = normal(shape, dtype, request.seed, 301);

    StepWatcher watcher;
    const RunContext context{.training = true, .observer = &watcher};
    observe::start({.races = request.races});
    const MoELayer::Forward forward = layer.forward(hidden, {}, context);
    const MoELayer::Gradients gradients = layer.backward(doutput, forward.saved, context);
    observe::stop();

    LayerProfile result{layer.spec(), {}, {}, observe::report()};
    result.sizes = {request.seq_length * request.micro_batch_size, watcher.num_rows()};
    result.steps = by_step(result.report, watcher);
    const TierFloors floors(config, result, forward.saved.dense);
    for (StepProfile& step : result.steps)
        if (step.steps) step.floor = floors.of(*step.steps);
    return result;
}

bool belongs_to(const std::optional<Steps>& steps, const std::string& component) {
    if (component == "layer") return true;
    if (!steps) return false;
    // Step n is undone by step 21 - n
    const int first = int(steps->first);
    const int forward = std::min(first, kNumSteps + 1 - first);
    const Step of = Step(forward);
    if (component == "shared_experts") return of == Step::shared_experts;
    if (component == "dispatcher") return of == Step::dispatch || of == Step::combine;
    if (component == "router") return of >= Step::gating && of <= Step::auxiliary_losses;
    return of >= Step::fc1 && of <= Step::fc2;
}

}  // namespace moe::profile
