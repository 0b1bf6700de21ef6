#include "bench/parts.h"

#include <algorithm>
#include <cmath>

#include "cli/compare/closeness.h"
#include "core/kept_bytes.h"
#include "core/transfer.h"

namespace moe::bench {
namespace {

/// Collects deviations of several tensors into the worst.
class Judge {
  public:
    Judge(DType dtype, bool gradient) : bound_(tier_bound(dtype, gradient)) {
        worst_.bound = bound_;
    }
    void hold(const std::string& name, const Tensor& got, const Tensor& expected) {
        const Closeness closeness = measure_closeness(got, expected);
        const double bound = is_floating(expected.dtype()) ? bound_ : 0.0;
        if (!closeness.within(bound) && worst_.detail.empty())
            worst_.detail = name + ": " + describe_worst(closeness, got, expected);
        worst_.error = std::max(worst_.error, closeness.finite && closeness.same_shape
                                                  ? closeness.error
                                                  : INFINITY);
    }
    void hold(const TensorMap& got, const TensorMap& expected,
              const std::string& prefix) {
        for (const auto& [name, gradient] : expected)
            if (name.starts_with(prefix)) hold("d_" + name, got.at(name), gradient);
    }
    const Deviation& worst() const { return worst_; }

  private:
    double bound_;
    Deviation worst_;
};

const RunContext kUnwatched = {};

class RouterPart : public Part {
  public:
    RouterPart(const ComponentSpec& spec, const Reference& reference)
        : reference_(reference),
          dtype_(spec.dtype),
          router_(
              find_tier("spec", spec.tier)
                  .make_router(reference.config, spec.dtype, reference.plain_parameters)),
          hidden_(as_taken(reference.inputs.hidden)),
          dprobs_(transfer(reference.at("d_probs"), router_->placement())) {}

    void forward() override { out_ = router_->forward(hidden_, {}, kUnwatched); }
    void backward() override {
        if (!dtopk_probs_.defined())
            dtopk_probs_ = router_->make_dense_backward(dprobs_, *out_.saved);
        router_->backward(dhidden_, gradients_, dtopk_probs_, *out_.saved, kUnwatched);
    }
    Deviation forward_deviation() const override {
        Judge judge(dtype_, false);
        Router::Output dense;
        dense.probs = out_.probs;
        dense.routing_map = out_.routing_map;
        dense.topk_probs = out_.topk_probs;
        dense.topk_ids = out_.topk_ids;
        if (!dense.probs.defined()) router_->make_dense(dense);
        judge.hold("routing_map", dense.routing_map, reference_.at("routing_map"));
        judge.hold("probs", dense.probs, reference_.at("probs"));
        return judge.worst();
    }
    Deviation backward_deviation() const override {
        Judge judge(dtype_, true);
        judge.hold("d_hidden_states", dhidden_, reference_.at("d_hidden_states_router"));
        judge.hold(gradients_, reference_.plain_gradients, "router.");
        return judge.worst();
    }
    void release_forward() override { out_ = {}; }
    void release_backward() override {
        gradients_ = {};
        // The router adds to the gradient that has come so far
        dhidden_ = as_taken(reference_.at("d_hidden_states_routed")).clone();
    }

  private:
    /// In the layer's dtype, if the router takes that.
    Tensor as_taken(const Tensor& tensor) const {
        Placement target = router_->placement();
        if (router_->takes(dtype_)) target.dtype = dtype_;
        return transfer(tensor, target);
    }

    const Reference& reference_;
    DType dtype_;
    std::unique_ptr<Router> router_;
    Tensor hidden_, dprobs_, dtopk_probs_, dhidden_;
    Router::Output out_;
    TensorMap gradients_;
};

/// The reference's routing as a dispatcher takes it: dense maps, or the choices of each
/// token, with the gradient that is to come back.
struct GivenRouting {
    Tensor probs, routing, dprobs;
};

GivenRouting dense_routing(const Reference& reference) {
    return {reference.at("probs"), reference.at("routing_map"), reference.at("d_probs")};
}

GivenRouting topk_routing(const Reference& reference) {
    const GivenRouting dense = dense_routing(reference);
    const std::vector<double> chosen = to_doubles(reference.at("topk_idx"));
    const std::int64_t T = dense.probs.dim(0), E = dense.probs.dim(1);
    const std::int64_t K = reference.config.moe_router_topk;
    const auto at = [](const Tensor& tensor) { return tensor.data<double>(); };
    GivenRouting choices = {Tensor::zeros({T, K}, DType::f64),
                            Tensor::empty({T, K}, DType::i32),
                            Tensor::zeros({T, K}, DType::f64)};
    for (std::int64_t i = 0; i < T * K; ++i) {
        const std::int64_t entry = i / K * E + std::int64_t(chosen[i]);
        const bool kept = dense.routing.data<std::uint8_t>()[entry] != 0;
        choices.routing.data<std::int32_t>()[i] = kept ? std::int32_t(chosen[i]) : -1;
        if (!kept) continue;
        choices.probs.data<double>()[i] = at(dense.probs)[entry];
        choices.dprobs.data<double>()[i] = at(dense.dprobs)[entry];
    }
    return choices;
}

/// Dispatch and combine, and both backward.
class DispatcherPart : public Part {
  public:
    DispatcherPart(const ComponentSpec& spec, const Reference& reference)
        : reference_(reference),
          dtype_(spec.dtype),
          dispatcher_(
              find_tier("spec", spec.tier).make_dispatcher(reference.config, spec.dtype)),
          hidden_(here(reference.sent())),
          routing_(dispatcher_->takes_topk() &&
                           !reference.config.moe_pad_expert_input_to_capacity
                       ? topk_routing(reference)
                       : dense_routing(reference)),
          probs_(probs_here(routing_.probs)),
          map_(here(routing_.routing)),
          rows_(here(reference.at("expert_output"))),
          doutput_(here(reference.d_combined())),
          drows_(here(reference.at("d_dispatched_hidden_states"))),
          drow_probs_(probs_here(reference.at("d_dispatched_probs"))) {
        const std::int64_t width = reference.config.latent_size();
        const Shape tokens = {hidden_.numel() / width, width};
        hidden_ = hidden_.reshaped(tokens);
        doutput_ = doutput_.reshaped(tokens);
        // What is combined came without the shared experts' output; a projection adds it
        if (reference.config.shared_ffn() > 0 && !reference.config.moe_latent_size)
            shared_ = here(reference.at("shared_output"));
    }

    void forward() override {
        out_ = dispatcher_->dispatch(hidden_, probs_, map_, kUnwatched);
        output_ = dispatcher_->combine(rows_, shared_, *out_.saved, kUnwatched);
    }
    void backward() override {
        dexpert_output_ =
            dispatcher_->combine_backward(doutput_, *out_.saved, kUnwatched).plain();
        gradients_ =
            dispatcher_->dispatch_backward(drows_, drow_probs_, *out_.saved, kUnwatched);
    }
    Deviation forward_deviation() const override {
        Judge judge(dtype_, false);
        judge.hold("tokens_per_expert", out_.tokens_per_expert,
                   reference_.at("tokens_per_expert"));
        const Tensor& rows = reference_.at("dispatched_hidden_states");
        judge.hold("rows", out_.rows.plain().first(rows.dim(0)), rows);
        judge.hold("row_probs", out_.row_probs.first(rows.dim(0)),
                   reference_.at("dispatched_probs"));
        const Tensor& output = reference_.combined();
        judge.hold("output", output_, output.reshaped(output_.shape()));
        return judge.worst();
    }
    Deviation backward_deviation() const override {
        Judge judge(dtype_, true);
        judge.hold("d_expert_output", dexpert_output_, reference_.at("d_expert_output"));
        judge.hold("d_hidden_states", gradients_.dhidden, reference_.d_sent());
        judge.hold("d_probs", gradients_.dprobs, routing_.dprobs);
        return judge.worst();
    }
    void release_forward() override { out_ = {}, output_ = {}; }
    void release_backward() override { dexpert_output_ = {}, gradients_ = {}; }

  private:
    Tensor here(const Tensor& tensor) const {
        return transfer(tensor, dispatcher_->placement());
    }
    Tensor probs_here(const Tensor& tensor) const {
        return transfer(tensor, probs_placement(dispatcher_->placement()));
    }

    const Reference& reference_;
    DType dtype_;
    std::unique_ptr<TokenDispatcher> dispatcher_;
    Tensor hidden_;
    GivenRouting routing_;
    Tensor probs_, map_, rows_, shared_, doutput_, drows_, drow_probs_;
    TokenDispatcher::Dispatched out_;
    Tensor output_, dexpert_output_;
    TokenDispatcher::Gradients gradients_;
};

class ExpertsPart : public Part {
  public:
    ExpertsPart(const ComponentSpec& spec, const Reference& reference)
        : reference_(reference),
          dtype_(spec.dtype),
          experts_(find_tier("spec", spec.tier)
                       .make_experts(reference.config, spec.dtype,
                                     reference.plain_parameters)),
          rows_(
              transfer(reference.at("dispatched_hidden_states"), experts_->placement())),
          tokens_per_expert_(
              transfer(reference.at("tokens_per_expert"), experts_->placement())),
          row_probs_(transfer(reference.at("dispatched_probs"),
                              probs_placement(experts_->placement()))),
          doutput_(transfer(reference.at("d_expert_output"), experts_->placement())) {}

    void forward() override {
        out_ = experts_->forward(rows_, tokens_per_expert_, row_probs_, kUnwatched);
    }
    void backward() override {
        through_ = experts_->backward(gradients_, doutput_, *out_.saved, kUnwatched);
    }
    Deviation forward_deviation() const override {
        Judge judge(dtype_, false);
        judge.hold("expert_output", out_.rows, reference_.at("expert_output"));
        return judge.worst();
    }
    Deviation backward_deviation() const override {
        Judge judge(dtype_, true);
        judge.hold("d_rows", through_.drows, reference_.at("d_dispatched_hidden_states"));
        judge.hold("d_row_probs", through_.drow_probs,
                   reference_.at("d_dispatched_probs"));
        judge.hold(gradients_, reference_.plain_gradients, "experts.");
        return judge.worst();
    }
    void release_forward() override { out_ = {}; }
    void release_backward() override { gradients_ = {}, through_ = {}; }

  private:
    const Reference& reference_;
    DType dtype_;
    std::unique_ptr<Experts> experts_;
    Tensor rows_, tokens_per_expert_, row_probs_, doutput_;
    Experts::Output out_;
    Experts::Gradients through_;
    TensorMap gradients_;
};

class SharedExpertsPart : public Part {
  public:
    SharedExpertsPart(const ComponentSpec& spec, const Reference& reference)
        : reference_(reference),
          dtype_(spec.dtype),
          experts_(find_tier("spec", spec.tier)
                       .make_shared_experts(reference.config, spec.dtype,
                                            reference.plain_parameters)),
          hidden_(transfer(reference.inputs.hidden, experts_->placement())),
          doutput_(transfer(reference.inputs.doutput, experts_->placement())) {
        const Shape tokens = {hidden_.dim(0) * hidden_.dim(1), hidden_.dim(2)};
        hidden_ = hidden_.reshaped(tokens);
        doutput_ = doutput_.reshaped(tokens);
    }

    void forward() override { out_ = experts_->forward(hidden_, kUnwatched); }
    void backward() override {
        experts_->backward(dhidden_, gradients_, doutput_, *out_.saved, kUnwatched);
    }
    Deviation forward_deviation() const override {
        Judge judge(dtype_, false);
        judge.hold("shared_output", out_.output, reference_.at("shared_output"));
        return judge.worst();
    }
    Deviation backward_deviation() const override {
        Judge judge(dtype_, true);
        const Tensor& dhidden = reference_.at("d_hidden_states");
        judge.hold("d_hidden_states", dhidden_, dhidden.reshaped(dhidden_.shape()));
        judge.hold(gradients_, reference_.plain_gradients, "shared_experts.");
        return judge.worst();
    }
    void release_forward() override { out_ = {}; }
    void release_backward() override {
        gradients_ = {};
        // They add to what router and dispatcher have made
        dhidden_ = transfer(reference_.at("d_hidden_states_router").view(),
                            experts_->placement());
    }

  private:
    const Reference& reference_;
    DType dtype_;
    std::unique_ptr<SharedExperts> experts_;
    Tensor hidden_, doutput_, dhidden_;
    SharedExperts::Output out_;
    TensorMap gradients_;
};

class LayerPart : public Part {
  public:
    LayerPart(const ModuleSpec& spec, const Reference& reference)
        : reference_(reference),
          layer_(reference.config, spec, reference.inputs.parameters),
          hidden_(transfer(reference.inputs.hidden, placement())),
          doutput_(transfer(reference.inputs.doutput, placement())) {}

    void forward() override { out_ = layer_.forward(hidden_, {}, kUnwatched); }
    void backward() override {
        gradients_ = layer_.backward(doutput_, out_.saved, kUnwatched);
    }
    Deviation forward_deviation() const override {
        Judge judge(dtype(), false);
        judge.hold("output", out_.output, reference_.at("output"));
        return judge.worst();
    }
    Deviation backward_deviation() const override {
        Judge judge(dtype(), true);
        judge.hold("d_hidden_states", gradients_.hidden_states,
                   reference_.at("d_hidden_states"));
        judge.hold(gradients_.parameters, reference_.gradients, "");
        return judge.worst();
    }
    std::int64_t kept_bytes() override { return count_kept_bytes(layer_, hidden_); }
    void release_forward() override { out_ = {}; }
    void release_backward() override { gradients_ = {}; }

  private:
    DType dtype() const { return layer_.spec().coarsest_dtype(); }
    /// The dispatcher's: it is the first to want the tokens as they are.
    Placement placement() const {
        const ComponentSpec& dispatcher = layer_.spec().dispatcher;
        return {find_tier("spec", dispatcher.tier).memory_space(), dispatcher.dtype};
    }

    const Reference& reference_;
    MoELayer layer_;
    Tensor hidden_, doutput_;
    MoELayer::Forward out_;
    MoELayer::Gradients gradients_;
};

}  // namespace

std::vector<std::string> part_names(const MoEConfig& config) {
    std::vector<std::string> names = {"router", "dispatcher", "experts"};
    // It is given the reference's rows, and a tier may have those that pad elsewhere
    if (config.moe_router_padding_for_quantization) std::erase(names, "dispatcher");
    if (config.shared_ffn() > 0) names.push_back("shared_experts");
    names.push_back("layer");
    return names;
}

std::unique_ptr<Part> make_part(const std::string& name, const ModuleSpec& spec,
                                const Reference& reference) {
    ModuleSpec raised = spec;
    raised.raise_router_dtype(reference.config);
    if (name == "router") return std::make_unique<RouterPart>(raised.router, reference);
    if (name == "dispatcher")
        return std::make_unique<DispatcherPart>(raised.dispatcher, reference);
    if (name == "experts")
        return std::make_unique<ExpertsPart>(raised.experts, reference);
    if (name == "shared_experts")
        return std::make_unique<SharedExpertsPart>(raised.shared_experts, reference);
    MOE_CHECK(name == "layer");
    return std::make_unique<LayerPart>(raised, reference);
}

}  // namespace moe::bench
