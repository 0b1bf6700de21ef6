#include "core/checkpoint/layouts.h"

#include <fmt/format.h>

#include <map>

#include "core/checkpoint/experts.h"
#include "core/checkpoint/strided.h"
#include "core/error.h"
#include "core/given_experts.h"
#include "core/known_names.h"

namespace moe::checkpoint {
namespace {

// ------------------------------------------------------------------ 1. the layouts

void share(Layout& layout, const std::string& shared) {
    layout.shared_gate = shared + "gate_proj.weight";
    layout.shared_up = shared + "up_proj.weight";
    layout.shared_fc2 = shared + "down_proj.weight";
}

Layout per_expert(const std::string& name, const std::string& block,
                  const std::string& shared) {
    Layout layout;
    layout.name = name;
    layout.router = block + "gate.weight";
    layout.expert_bias = block + "gate.e_score_correction_bias";
    layout.tid2eid = block + "gate.tid2eid";
    layout.gate = block + "experts.{}.gate_proj.weight";
    layout.up = block + "experts.{}.up_proj.weight";
    layout.fc2 = block + "experts.{}.down_proj.weight";
    layout.shared_gate_weight = block + "shared_expert_gate.weight";
    layout.latent = block;
    share(layout, block + shared);
    return layout;
}

Layout with_w1_w3_w2(Layout layout, const std::string& block) {
    layout.gate = block + "experts.{}.w1.weight";
    layout.up = block + "experts.{}.w3.weight";
    layout.fc2 = block + "experts.{}.w2.weight";
    return layout;
}

Layout packed(Layout layout, const std::string& block, Packed how) {
    layout.gate = layout.up = "";
    layout.fc1 = block + "experts.gate_up_proj";
    layout.fc2 = block + "experts.down_proj";
    layout.fc1_bias = block + "experts.gate_up_proj_bias";
    layout.fc2_bias = block + "experts.down_proj_bias";
    layout.packed = how;
    return layout;
}

Layout with_router(Layout layout, const std::string& router) {
    layout.router = router + ".weight";
    layout.router_bias = router + ".bias";
    return layout;
}

Layout megatron(const std::string& name, const std::string& fc1, const std::string& fc2) {
    const auto of = [](const std::string& fc, const char* what) {
        return "mlp.experts." + fmt::format(fmt::runtime(fc), what);
    };
    Layout layout;
    layout.name = name;
    layout.router = "mlp.router.weight";
    layout.router_bias = "mlp.router.bias";
    layout.expert_bias = "mlp.router.expert_bias";
    layout.tid2eid = "mlp.router.tid2eid";
    layout.fc1 = of(fc1, "weight");
    layout.fc2 = of(fc2, "weight");
    layout.fc1_bias = of(fc1, "bias");
    layout.fc2_bias = of(fc2, "bias");
    layout.shared_fc1 = "mlp.shared_experts.linear_fc1.weight";
    layout.shared_fc2 = "mlp.shared_experts.linear_fc2.weight";
    layout.shared_gate_weight = "mlp.shared_experts.gate_weight";
    layout.latent = "mlp.";
    return layout;
}

std::vector<Layout> make_layouts() {
    const Layout deepseek = per_expert("deepseek_v3", "mlp.", "shared_experts.");
    Layout mixtral =
        with_w1_w3_w2(per_expert("mixtral", "block_sparse_moe.", "shared_experts."),
                      "block_sparse_moe.");
    mixtral.expert_bias = "block_sparse_moe.e_score_correction_bias";  // MiniMax-M2's
    Layout v4 =
        with_w1_w3_w2(per_expert("deepseek_v4", "ffn.", "shared_experts."), "ffn.");
    v4.expert_bias = "ffn.gate.bias";
    v4.shared_gate = "ffn.shared_experts.w1.weight";
    v4.shared_up = "ffn.shared_experts.w3.weight";
    v4.shared_fc2 = "ffn.shared_experts.w2.weight";
    Layout gpt_oss = with_router(packed(per_expert("gpt_oss", "mlp.", "shared_experts."),
                                        "mlp.", Packed::interleaved),
                                 "mlp.router");
    Layout llama4 =
        with_router(packed(per_expert("llama4", "feed_forward.", "shared_expert."),
                           "feed_forward.", Packed::columns),
                    "feed_forward.router");
    Layout aria = with_router(
        packed(per_expert("aria", "mlp.", "shared_experts."), "mlp.", Packed::columns),
        "mlp.router");
    aria.fc1 = "mlp.experts.fc1.weight";
    aria.fc2 = "mlp.experts.fc2.weight";
    Layout granite =
        with_router(packed(per_expert("granitemoe", "block_sparse_moe.", "shared_mlp."),
                           "block_sparse_moe.", Packed::rows),
                    "block_sparse_moe.router.layer");
    granite.fc1 = "block_sparse_moe.input_linear.weight";
    granite.fc2 = "block_sparse_moe.output_linear.weight";
    granite.router_bias = granite.fc1_bias = granite.fc2_bias = "";
    granite.shared_gate = granite.shared_up = "";
    granite.shared_fc1 = "shared_mlp.input_linear.weight";
    granite.shared_fc2 = "shared_mlp.output_linear.weight";
    Layout dbrx =
        with_router(per_expert("dbrx", "ffn.", "shared_experts."), "ffn.router.layer");
    dbrx.router_bias = "";
    dbrx.stacked = true;
    dbrx.gate = "ffn.experts.mlp.w1";
    dbrx.up = "ffn.experts.mlp.v1";
    dbrx.fc2 = "ffn.experts.mlp.w2";
    const auto deepseek_but = [&](const char* name, const char* bias) {
        Layout layout = deepseek;
        layout.name = name;
        layout.expert_bias = bias;
        return layout;
    };
    Layout afmoe = deepseek_but("afmoe", "mlp.expert_bias");
    afmoe.router = "mlp.router.gate.weight";
    Layout hy_v3 = afmoe;
    hy_v3.name = "hy_v3";
    share(hy_v3, "mlp.shared_mlp.");
    Layout hunyuan = per_expert("hunyuan_v1_moe", "mlp.", "shared_mlp.");
    hunyuan.router = "mlp.gate.wg.weight";
    Layout laguna = per_expert("laguna", "mlp.", "shared_expert.");
    laguna.expert_bias = "mlp.experts.e_score_correction_bias";
    return {
        per_expert("qwen2_moe", "mlp.", "shared_expert."),
        deepseek,
        deepseek_but("bailing_hybrid", "mlp.gate.expert_bias"),
        deepseek_but("ernie4_5_moe", "mlp.moe_statics.e_score_correction_bias"),
        deepseek_but("exaone_moe", "mlp.e_score_correction_bias"),
        afmoe,
        hy_v3,
        hunyuan,
        laguna,
        with_w1_w3_w2(per_expert("kimi_linear", "block_sparse_moe.", "shared_experts."),
                      "block_sparse_moe."),
        with_w1_w3_w2(per_expert("mistral_large4", "", "shared_experts."), ""),
        mixtral,
        v4,
        with_router(per_expert("jamba", "feed_forward.", "shared_experts."),
                    "feed_forward.router"),
        per_expert("nemotron_h", "mixer.", "shared_experts."),
        packed(per_expert("packed", "mlp.", "shared_experts."), "mlp.", Packed::rows),
        granite,
        aria,
        llama4,
        gpt_oss,
        dbrx,
        megatron("megatron", "linear_fc1.{}{{}}", "linear_fc2.{}{{}}"),
        megatron("megatron_sequential", "local_experts.{{}}.linear_fc1.{}",
                 "local_experts.{{}}.linear_fc2.{}")};
}

// ------------------------------------------------------------------ 2. a layer in one

/// Rows `first` to first + count of expert e of (E, rows, columns), without a copy.
Tensor slice(const Tensor& all, std::int64_t e, std::int64_t first, std::int64_t count) {
    const std::int64_t rows = all.dim(1), columns = all.dim(2);
    return Tensor::borrow(
        {bytes_at(all, (e * rows + first) * columns), all.dtype(), {count, columns}},
        std::make_shared<Tensor>(all));
}

class Writer {
  public:
    Writer(const Layout& layout, const MoEConfig& config, const TensorMap& parameters)
        : layout_(layout), config_(config), parameters_(parameters) {}

    TensorMap write() {
        put(layout_.router, "router.weight");
        put(layout_.router_bias, "router.bias");
        put(layout_.expert_bias, "router.expert_bias");
        put(layout_.tid2eid, kTid2Eid);
        put_experts();
        put_biases();
        put_shared();
        for (const std::string part : {"fc1_latent_proj.weight", "fc1_latent_proj.bias",
                                       "fc2_latent_proj.weight", "fc2_latent_proj.bias"})
            put(layout_.latent.empty() ? "" : layout_.latent + part, part);
        return std::move(written_);
    }

  private:
    /// The parameter under that name, if the layer has it.
    void put(const std::string& name, const std::string& parameter) {
        const auto found = parameters_.find(parameter);
        if (found != parameters_.end()) put_tensor(name, parameter, found->second);
    }
    void put_tensor(const std::string& name, const std::string& parameter,
                    const Tensor& tensor) {
        if (name.empty()) reject("layout", layout_.name, "has no name for " + parameter);
        written_[name] = tensor;
    }
    std::string of_expert(const std::string& name, std::int64_t e) const {
        const std::size_t at = name.find("{}");
        return at == name.npos
                   ? name
                   : name.substr(0, at) + std::to_string(e) + name.substr(at + 2);
    }

    void put_experts() {
        const Tensor& fc1 = parameters_.at("experts.linear_fc1.weight");
        const Tensor& fc2 = parameters_.at("experts.linear_fc2.weight");
        if (layout_.stacked) return put_stacked(fc1, fc2);
        if (!layout_.per_expert()) return put_packed(fc1, fc2);
        for (std::int64_t e = 0; e < E_; ++e) {
            if (!layout_.fc1.empty()) {
                written_[of_expert(layout_.fc1, e)] = slice(fc1, e, 0, fc1.dim(1));
            } else {
                if (config_.gated_linear_unit)
                    written_[of_expert(layout_.gate, e)] = slice(fc1, e, 0, F_);
                written_[of_expert(layout_.up, e)] = slice(fc1, e, fc1.dim(1) - F_, F_);
            }
            written_[of_expert(layout_.fc2, e)] = slice(fc2, e, 0, fc2.dim(1));
        }
    }

    void put_packed(const Tensor& fc1, const Tensor& fc2) {
        if (layout_.packed == Packed::rows) {
            written_[layout_.fc1] = fc1;
            written_[layout_.fc2] = fc2;
            return;
        }
        const std::int64_t Z = fc1.dim(1), l = fc1.dim(2);
        const std::size_t size = size_of(fc1.dtype());
        Tensor columns = Tensor::empty({E_, l, Z}, fc1.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < Z / F_; ++up) {
                const Half at = half_of(layout_.packed, Z > F_, up, F_);
                copy_strided({bytes_at(columns, e * Z * l + at.first), at.stride, Z},
                             {bytes_at(fc1, (e * Z + up * F_) * l), l, 1}, F_, l, size);
            }
        written_[layout_.fc1] = columns;
        written_[layout_.fc2] = transposed(fc2, {E_, F_, l});
    }

    void put_stacked(const Tensor& fc1, const Tensor& fc2) {
        if (!config_.gated_linear_unit)
            reject("layout", layout_.name, "has no name for experts without gates");
        const std::int64_t l = fc1.dim(2);
        for (const bool up : {false, true}) {
            Tensor half = Tensor::empty({E_ * F_, l}, fc1.dtype());
            copy_strided({bytes_at(half, 0), F_ * l, 1},
                         {bytes_at(fc1, up ? F_ * l : 0), 2 * F_ * l, 1}, E_, F_ * l,
                         size_of(fc1.dtype()));
            written_[up ? layout_.up : layout_.gate] = half;
        }
        written_[layout_.fc2] = transposed(fc2, {E_ * F_, l});
    }

    /// FC2's (E, ℓ, F) as E times (F, ℓ), under that shape.
    Tensor transposed(const Tensor& fc2, const Shape& shape) const {
        const std::int64_t l = fc2.dim(1);
        Tensor turned = Tensor::empty(shape, fc2.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            copy_strided({bytes_at(turned, e * l * F_), 1, l},
                         {bytes_at(fc2, e * l * F_), F_, 1}, l, F_, size_of(fc2.dtype()));
        return turned;
    }

    void put_biases() {
        for (const bool second : {false, true}) {
            const std::string parameter =
                second ? "experts.linear_fc2.bias" : "experts.linear_fc1.bias";
            const std::string& name = second ? layout_.fc2_bias : layout_.fc1_bias;
            const auto found = parameters_.find(parameter);
            if (found == parameters_.end()) continue;
            const Tensor& bias = found->second;
            if (!name.empty() && layout_.per_expert()) {
                const Tensor rows = bias.reshaped({E_, 1, bias.dim(1)});
                for (std::int64_t e = 0; e < E_; ++e)
                    written_[of_expert(name, e)] =
                        slice(rows, e, 0, 1).reshaped({bias.dim(1)});
            } else {
                put_tensor(name, parameter, second ? bias : in_turn(bias));
            }
        }
    }

    /// FC1's bias as FC1's columns lie.
    Tensor in_turn(const Tensor& bias) const {
        if (layout_.packed != Packed::interleaved) return bias;
        const std::int64_t Z = bias.dim(1);
        Tensor turned = Tensor::empty(bias.shape(), bias.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < Z / F_; ++up) {
                const Half at = half_of(layout_.packed, Z > F_, up, F_);
                copy_strided({bytes_at(turned, e * Z + at.first), at.stride, 1},
                             {bytes_at(bias, e * Z + up * F_), 1, 1}, F_, 1,
                             size_of(bias.dtype()));
            }
        return turned;
    }

    void put_shared() {
        const std::string parameter = "shared_experts.linear_fc1.weight";
        const auto found = parameters_.find(parameter);
        if (found == parameters_.end()) return;
        const Tensor& fc1 = found->second;
        const std::int64_t Fs = config_.shared_ffn();
        const Tensor whole = fc1.reshaped({1, fc1.dim(0), fc1.dim(1)});
        if (!layout_.shared_fc1.empty()) {
            put_tensor(layout_.shared_fc1, parameter, fc1);
        } else {
            if (config_.gated_linear_unit)
                put_tensor(layout_.shared_gate, parameter, slice(whole, 0, 0, Fs));
            put_tensor(layout_.shared_up, parameter,
                       slice(whole, 0, fc1.dim(0) - Fs, Fs));
        }
        put(layout_.shared_fc2, "shared_experts.linear_fc2.weight");
        put(layout_.shared_gate_weight, "shared_experts.gate_weight");
    }

    const Layout& layout_;
    const MoEConfig& config_;
    const TensorMap& parameters_;
    TensorMap written_;
    std::int64_t E_ = config_.num_experts(), F_ = config_.ffn();
};

}  // namespace

const std::vector<Layout>& layouts() {
    static const std::vector<Layout> all = make_layouts();
    return all;
}

std::vector<std::string> layout_names() {
    std::vector<std::string> names;
    for (const Layout& layout : layouts()) names.push_back(layout.name);
    return names;
}

const Layout& find_layout(const std::string& field, const std::string& name) {
    for (const Layout& layout : layouts())
        if (layout.name == name) return layout;
    reject_unknown(field, name, layout_names());
}

TensorMap in_layout(const Layout& layout, const MoEConfig& config,
                    const TensorMap& parameters) {
    return Writer(layout, config, parameters).write();
}

std::string packed_in_words(const Layout& layout) {
    if (layout.per_expert() || layout.stacked) return "";
    return layout.packed == Packed::rows          ? "rows"
           : layout.packed == Packed::interleaved ? "interleaved"
                                                  : "columns";
}

}  // namespace moe::checkpoint
