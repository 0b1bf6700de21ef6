// Gradients against finite differences, in fp64: what backward returns must be the slope
// of
//
//     f = Σ output · doutput + scale · Σ_losses coefficient · factor · logged loss
//
// for the whole layer, and for its router, experts and shared experts alone.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

const Placement kFp64{MemorySpace::host, DType::f64};

Tensor random64(const Shape& shape, std::uint64_t seed) {
    return transfer(random_tensor(shape, seed), kFp64);
}

double dot(const TensorView& a, const TensorView& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

/// a + factor * b.
Tensor sum(const Tensor& a, double factor, const Tensor& b) {
    Tensor result = a.clone();
    for (std::int64_t i = 0; i < a.numel(); ++i)
        result.data<double>()[i] += factor * b.data<double>()[i];
    return result;
}

// ---------------------------------------------------------------------------- slopes

/// Everything that makes f jump or bend: who is chosen, and on which side of a kink the
/// activations are.
class PatternRecorder : public Observer {
  public:
    explicit PatternRecorder(const MoEConfig& config) : config_(config) {}
    void on_value(Step, const std::string& name, const TensorView& view) override {
        const std::vector<double> values = to_doubles(view);
        if (name == "routing_map" || name == "topk_idx")
            pattern.insert(pattern.end(), values.begin(), values.end());
        if (name == "logits") add_largest(values);
        if (name == "fc1_output")
            for (double h : values) add_side(h);
    }
    std::vector<double> pattern;

  private:
    /// The losses count the K largest scores of a row, which are its K largest logits.
    void add_largest(const std::vector<double>& logits) {
        const std::int64_t E = config_.num_experts();
        for (std::size_t row = 0; row < logits.size(); row += E) {
            std::vector<double> sorted(logits.begin() + row, logits.begin() + row + E);
            std::sort(sorted.rbegin(), sorted.rend());
            const double least = sorted[config_.moe_router_topk - 1];
            for (std::int64_t e = 0; e < E; ++e)
                pattern.push_back(logits[row + e] >= least);
        }
    }
    void add_side(double h) {
        if (config_.activation_func == "squared_relu") pattern.push_back(h > 0.0);
        const double limit = config_.activation_func_clamp_value.value_or(INFINITY);
        pattern.push_back((h > limit) - (h < -limit));
    }
    const MoEConfig& config_;
};

struct Point {
    double f = 0.0;
    std::vector<double> pattern;
};
using Function = std::function<Point()>;

/// Where f is computed from fp32 scores it is rough: wide steps look past that. In pure
/// fp64 small steps are exact to many digits.
struct Precision {
    double step, bound;
};
constexpr Precision kRough{2e-2, 2e-4}, kFine{1e-3, 1e-9};

/// Expects <gradient, d> to be the slope of f along random directions d of length one in
/// the values of `at`, which f reads. Directions that change the pattern tell nothing.
void expect_slopes(const Function& f, Tensor& at, const Tensor& gradient,
                   const Precision& precision, const std::string& name) {
    ASSERT_EQ(gradient.shape(), at.shape()) << name;
    const double norm = std::sqrt(dot(gradient, gradient));
    EXPECT_GT(norm, 1e-2) << name << ": too small to be told from nothing";
    const Tensor start = at;
    const std::vector<double> pattern = f().pattern;
    int directions = 0;
    for (std::uint64_t seed = 21; directions < 3 && seed < 61; ++seed) {
        const Tensor d = random64(at.shape(), seed);
        const double length = std::sqrt(dot(d, d));
        double slope = 0.0;
        bool same_pattern = true;
        for (auto [steps, weight] : {std::pair{1, 8}, {-1, -8}, {2, -1}, {-2, 1}}) {
            at = sum(start, steps * precision.step / length, d);
            const Point point = f();
            slope += weight * point.f / (12.0 * precision.step);  // five-point stencil
            same_pattern = same_pattern && point.pattern == pattern;
        }
        at = start;
        if (!same_pattern) continue;
        ++directions;
        EXPECT_NEAR(slope, dot(gradient, d) / length,
                    precision.bound * std::max(norm, 1.0))
            << name << ", direction " << seed << ", norm of the gradient " << norm;
    }
    EXPECT_EQ(directions, 3) << name << ": choices flip everywhere; change the inputs";
}

// ----------------------------------------------------------------------------- cases

using Change = std::function<void(MoEConfig&)>;

struct Case {
    std::string name;
    std::vector<Change> changes;  ///< to a small_config()
    bool mask = false;
    double scale = 1.0;         ///< main_loss_backward_scale
    bool second_batch = false;  ///< another micro-batch came before
    Shape shape = {4, 3, 7};    ///< (S, B, H)

    MoEConfig config() const {
        MoEConfig config = small_config(shape[2], 6, 2, 5);
        for (const Change& change : changes) change(config);
        config.finalize();
        return config;
    }
    friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

const Change sigmoid = [](auto& c) { c.moe_router_score_function = "sigmoid"; };
const Change sqrtsoftplus = [](auto& c) { c.moe_router_score_function = "sqrtsoftplus"; };
const Change softmax_first = [](auto& c) { c.moe_router_pre_softmax = true; };
const Change k1 = [](auto& c) { c.moe_router_topk = 1; };
const Change k3 = [](auto& c) { c.moe_router_topk = 3; };
const Change k6 = [](auto& c) { c.moe_router_topk = 6; };
const Change one_expert = [](auto& c) { c.num_moe_experts = 1; };
const Change scaled = [](auto& c) { c.moe_router_topk_scaling_factor = 2.5; };
const Change bias = [](auto& c) { c.add_bias_linear = true; };
const Change expert_bias = [](auto& c) { c.moe_router_enable_expert_bias = true; };
const Change groups = [](auto& c) {
    c.moe_router_num_groups = 3;
    c.moe_router_group_topk = 2;
};

Change losses(const std::vector<std::string>& types, const std::vector<double>& coeffs) {
    return [=](auto& c) {
        c.moe_router_load_balancing_type = types;
        c.moe_aux_loss_coeff = coeffs;
    };
}
const Change aux = losses({"aux_loss"}, {9.0}), seq_aux = losses({"seq_aux_loss"}, {9.0});
const Change global_aux = losses({"global_aux_loss"}, {9.0});
const Change aux_seq_global =
    losses({"aux_loss", "seq_aux_loss", "global_aux_loss"}, {3.0, 5.0, 7.0});
const Change sinkhorn = losses({"sinkhorn"}, {0.0});
const Change z_loss = [](auto& c) { c.moe_z_loss_coeff = 0.5; };
const Change per_token = [](auto& c) { c.calculate_per_token_loss = true; };

const Change drop = [](auto& c) { c.moe_expert_capacity_factor = 0.7; };
const Change by_position = [](auto& c) { c.moe_token_drop_policy = "position"; };
const Change pad = [](auto& c) { c.moe_pad_expert_input_to_capacity = true; };

Change act(const std::string& name) {
    return [=](auto& c) { c.activation_func = name; };
}
const Change not_gated = [](auto& c) { c.gated_linear_unit = false; };
const Change clamp = [](auto& c) { c.activation_func_clamp_value = 0.75; };
const Change offset = [](auto& c) { c.glu_linear_offset = 1.5; };
const Change on_input = [](auto& c) { c.moe_apply_probs_on_input = true; };
const Change shared = [](auto& c) { c.moe_shared_expert_intermediate_size = 4; };
const Change gate = [](auto& c) { c.moe_shared_expert_gate = true; };

const std::vector<Case> kLayerCases = {
    // Routing
    {"softmax_after_topk", {}},
    {"softmax_after_topk_bias", {bias}},
    {"softmax_after_topk_scaled", {scaled}},
    {"softmax_before_topk", {softmax_first}},
    {"softmax_before_topk_k1", {softmax_first, k1}},
    {"softmax_before_topk_scaled", {softmax_first, scaled}},
    {"softmax_before_topk_groups", {softmax_first, groups}},
    {"sigmoid", {sigmoid}},
    {"sigmoid_k1", {sigmoid, k1}},
    {"sigmoid_everything", {sigmoid, k3, scaled, expert_bias, groups}},
    {"sqrtsoftplus", {sqrtsoftplus}},
    {"sqrtsoftplus_k1", {sqrtsoftplus, k1}},
    {"sqrtsoftplus_everything", {sqrtsoftplus, k3, scaled, expert_bias, groups}},
    {"every_expert", {k6}},
    {"one_expert", {sigmoid, one_expert, k1}},
    {"one_token", {aux_seq_global, z_loss}, false, 1.0, false, {1, 1, 20}},
    {"sinkhorn_k1", {sinkhorn, k1}},
    {"sinkhorn_k2", {sinkhorn}},
    // Losses
    {"aux", {aux}},
    {"aux_sigmoid", {sigmoid, aux}},
    {"aux_sqrtsoftplus", {sqrtsoftplus, aux}},
    {"aux_k1", {sigmoid, k1, aux}, false, 3.0},
    {"seq_aux", {seq_aux}},
    {"global_aux_second_batch", {global_aux}, false, 1.0, true},
    {"z", {z_loss}},
    {"z_sinkhorn", {sinkhorn, z_loss}},
    {"all_losses", {aux_seq_global, z_loss}, false, 0.25, true},
    {"all_losses_masked", {aux_seq_global, z_loss}, true, 2.0},
    {"all_losses_per_token", {aux_seq_global, z_loss, per_token}, false, 0.1},
    {"all_losses_per_token_masked", {aux_seq_global, z_loss, per_token}, true, 0.1},
    // Dropping: what is dropped stays in its token's sums
    {"drop_by_probs", {drop}},
    {"drop_by_position", {drop, by_position}},
    {"drop_sigmoid", {sigmoid, drop}},
    {"drop_sqrtsoftplus", {sqrtsoftplus, drop}},
    {"drop_before_topk", {softmax_first, drop}},
    {"drop_and_pad", {drop, pad, bias, aux_seq_global, z_loss}},
    // Experts
    {"probs_on_input", {sigmoid, k1, on_input, bias}},
    {"squared_relu", {act("squared_relu"), not_gated, bias}},
    {"swiglu_clamp", {clamp}},
    {"shared", {shared}},
    {"shared_gate", {shared, gate}},
};

const std::vector<Case> kMlpCases = {
    {"silu", {act("silu"), not_gated}},
    {"gelu", {act("gelu"), not_gated}},
    {"quick_gelu", {act("quick_gelu"), not_gated}},
    {"squared_relu", {act("squared_relu"), not_gated}},
    {"swiglu", {act("silu")}},
    {"geglu", {act("gelu")}},
    {"quick_geglu", {act("quick_gelu")}},
    {"squared_reglu", {act("squared_relu")}},
    {"swiglu_clamp", {act("silu"), clamp}},
    {"swiglu_offset", {act("silu"), offset}},
    {"geglu_clamp_offset", {act("gelu"), clamp, offset}},
    {"quick_geglu_clamp_offset", {act("quick_gelu"), clamp, offset}},
    {"squared_reglu_clamp_offset", {act("squared_relu"), clamp, offset}},
    {"probs_on_input", {sigmoid, k1, on_input}},
};

using CaseAndSupplier = std::tuple<Case, ComponentSpec>;
std::string case_and_supplier(const testing::TestParamInfo<CaseAndSupplier>& info) {
    return std::get<0>(info.param).name + "_" + std::get<1>(info.param).tier;
}

/// All cases, each in every tier's fp64.
auto in_fp64(const std::vector<Case>& cases) {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.dtype != DType::f64; });
    return testing::Combine(testing::ValuesIn(cases), testing::ValuesIn(suppliers));
}

/// One case on fixed input, as a function of its parameters and hidden states.
class GradientsTest : public testing::TestWithParam<CaseAndSupplier> {
  protected:
    void use(const MoEConfig& config) {
        config_ = config;
        parameters_.clear();
        for (const auto& [name, tensor] : random_parameters(config_, 37))
            parameters_[name] = transfer(tensor, kFp64);
    }
    void SetUp() override { use(case_.config()); }

    const Tier& tier() const { return find_tier("tier", supplier_.tier); }
    RunContext context(Observer* observer = nullptr) const {
        return {.main_loss_backward_scale = case_.scale, .observer = observer};
    }

    const Case case_ = std::get<0>(GetParam());
    const ComponentSpec supplier_ = std::get<1>(GetParam());
    const Shape shape_ = case_.shape;
    const std::int64_t num_tokens_ = shape_[0] * shape_[1];
    MoEConfig config_;
    TensorMap parameters_;
    Tensor hidden_ = random64(shape_, 12);
    const Tensor doutput_ = random64(shape_, 13);
};

// ------------------------------------------------------- the layer, and its router alone

class Gradients : public GradientsTest {
  protected:
    Gradients() {
        if (!case_.mask) return;
        // Sequences of 4, 3 and 1 valid tokens
        mask_ = Tensor::from<std::uint8_t>({3, 4}, {0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1});
        router_mask_ =
            Tensor::from<std::uint8_t>({4, 3}, {0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1});
    }

    /// What the losses add to f. They are logged before their coefficients.
    double attached(const Losses& losses) const {
        const double valid = case_.mask ? 8.0 : double(num_tokens_);
        double sum = 0.0;
        const auto add = [&](const std::string& name, double coefficient) {
            if (coefficient > 0.0) sum += coefficient * losses.at(name);
        };
        add("load_balancing_loss", config_.aux_loss_coeff("aux_loss"));
        add("seq_load_balancing_loss", config_.aux_loss_coeff("seq_aux_loss"));
        add("global_load_balancing_loss", config_.aux_loss_coeff("global_aux_loss"));
        add("z_loss", config_.moe_z_loss_coeff.value_or(0.0));
        return case_.scale * (config_.calculate_per_token_loss ? valid : 1.0) * sum;
    }

    /// Forward of a new layer or router: the global loss remembers earlier forwards.
    template <typename Subject>
    auto forward(Subject& subject, const Tensor& mask, Observer* observer = nullptr) {
        if (case_.second_batch) subject.forward(earlier_, {}, context(observer));
        return subject.forward(hidden_, mask, context(observer));
    }

    const Tensor earlier_ = random64(shape_, 14);
    Tensor mask_, router_mask_;  // (B, S) and (S, B)
};

TEST_P(Gradients, OfTheLayerAreItsSlopes) {
    const auto make = [&] {
        return MoELayer(config_, ModuleSpec::uniform(supplier_), parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        MoELayer layer = make();
        const auto result = forward(layer, mask_, &recorder);
        return Point{dot(result.output, doutput_) + attached(result.losses),
                     recorder.pattern};
    };
    MoELayer layer = make();
    const auto result = forward(layer, mask_);
    auto gradients = layer.backward(doutput_, result.saved, context());

    expect_slopes(f, hidden_, gradients.hidden_states, kRough, "hidden_states");
    EXPECT_EQ(gradients.parameters.size(),
              parameters_.size() - parameters_.count("router.expert_bias"));
    for (const auto& [name, gradient] : gradients.parameters)
        expect_slopes(f, parameters_.at(name), gradient,
                      name.starts_with("router.") ? kRough : kFine, name);
}

TEST_P(Gradients, OfTheRouterAreItsSlopes) {
    const Tensor dprobs = random64({num_tokens_, config_.num_experts()}, 15);
    const auto make = [&] {
        return tier().make_router(config_, supplier_.dtype, parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        const auto result = forward(*make(), router_mask_, &recorder);
        return Point{dot(result.probs, dprobs) + attached(result.losses),
                     recorder.pattern};
    };
    const auto router = make();
    const auto result = forward(*router, router_mask_);
    TensorMap gradients;
    const Tensor before = random64({num_tokens_, shape_[2]}, 16);
    Tensor dhidden = before.clone();  // the router adds to it
    router->backward(dhidden, gradients, dprobs, *result.saved, context());

    expect_slopes(f, hidden_, sum(dhidden, -1.0, before).reshaped(shape_), kRough,
                  "hidden");
    EXPECT_EQ(gradients.size(), config_.add_bias_linear ? 2u : 1u);
    for (const auto& [name, gradient] : gradients)
        expect_slopes(f, parameters_.at(name), gradient, kRough, name);
}

INSTANTIATE_TEST_SUITE_P(Fp64, Gradients, in_fp64(kLayerCases), case_and_supplier);

// ------------------------------------------------------ experts and shared experts alone

class MlpGradients : public GradientsTest {};

TEST_P(MlpGradients, OfTheExpertsAreTheirSlopes) {
    MoEConfig config = case_.config();
    config.add_bias_linear = true;
    use(config);
    const Tensor counts = Tensor::from<std::int64_t>({6}, {3, 0, 4, 1, 0, 1});
    Tensor rows = random64({9, shape_[2]}, 1), row_probs = random64({9}, 2);
    const Tensor doutput = random64({9, shape_[2]}, 3);
    const auto make = [&] {
        return tier().make_experts(config_, DType::f64, parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        const auto result = make()->forward(rows, counts, row_probs, context(&recorder));
        return Point{dot(result.rows, doutput), recorder.pattern};
    };
    const auto experts = make();
    const auto result = experts->forward(rows, counts, row_probs, {});
    TensorMap gradients;
    const auto inputs = experts->backward(gradients, doutput, *result.saved, {});

    expect_slopes(f, rows, inputs.drows, kFine, "rows");
    expect_slopes(f, row_probs, inputs.drow_probs, kFine, "row_probs");
    EXPECT_EQ(gradients.size(), 4u);
    for (const auto& [name, gradient] : gradients)
        expect_slopes(f, parameters_.at(name), gradient, kFine, name);
}

TEST_P(MlpGradients, OfTheSharedExpertsAreTheirSlopes) {
    for (bool with_gate : {false, true}) {
        MoEConfig config = case_.config();
        shared(config);
        config.moe_shared_expert_gate = with_gate;
        use(config);
        Tensor tokens = random64({num_tokens_, shape_[2]}, 1);
        const Tensor doutput = random64(tokens.shape(), 3);
        const auto make = [&] {
            return tier().make_shared_experts(config_, DType::f64, parameters_);
        };
        // Which side of a kink an activation is on does not show; few are that close.
        const Function f = [&] {
            return Point{dot(make()->forward(tokens, {}).output, doutput), {}};
        };
        const auto shared_experts = make();
        const auto result = shared_experts->forward(tokens, {});
        TensorMap gradients;
        const Tensor before = random64(tokens.shape(), 4);
        Tensor dtokens = before.clone();  // shared experts add to it
        shared_experts->backward(dtokens, gradients, doutput, *result.saved, {});

        expect_slopes(f, tokens, sum(dtokens, -1.0, before), kFine, "tokens");
        EXPECT_EQ(gradients.size(), with_gate ? 3u : 2u);
        for (const auto& [name, gradient] : gradients)
            expect_slopes(f, parameters_.at(name), gradient, kFine, name);
    }
}

INSTANTIATE_TEST_SUITE_P(Fp64, MlpGradients, in_fp64(kMlpCases), case_and_supplier);

}  // namespace
}  // namespace moe::test
