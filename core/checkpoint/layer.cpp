#include "core/checkpoint/layer.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/checkpoint/block.h"
#include "core/checkpoint/model.h"
#include "core/checkpoint/source.h"
#include "core/checkpoint/strided.h"
#include "core/error.h"
#include "core/given_experts.h"
#include "core/parameters.h"
#include "core/transfer.h"

namespace moe::checkpoint {
namespace {

/// Reads the tensors of one block into a Layer.
class Reader {
  public:
    Reader(const Source& source, const Block& block, const Model& model,
           const Options& options)
        : source_(source), block_(block), model_(model) {
        layer_.config = model.config;
        layer_.notes = model.notes;
        const MoEConfig& c = model.config;
        E_ = c.num_experts();
        F_ = c.ffn();
        latent_ = c.latent_size();
        rows_ = c.fc1_rows(F_);
        packed_ = choose_packed(options);
    }

    Layer read() {
        read_router();
        read_fc1();
        read_fc2();
        read_shared();
        read_latent();
        require_nothing_left();
        layer_.layout = layout_in_words();
        check_parameters(layer_.config, layer_.parameters, "");
        return std::move(layer_);
    }

  private:
    // -------------------------------------------------------------- one tensor

    /// The tensor, of that shape, or of `other`.
    Tensor take(const std::string& name, const Shape& shape, const Shape& other = {}) {
        const Shape found = source_.shape(name);
        if (found != shape && (other.empty() || found != other))
            reject(source_.where(name), "shape " + to_string(found),
                   "must have shape " + to_string(shape));
        const std::string dtype = source_.dtype(name);
        if (dtype != "F64" && dtype != "F32" && dtype != "BF16")
            reject(source_.where(name), dtype,
                   dtype == "F16" ? "must be F64, F32 or BF16: fp16 is not read"
                                  : "must be F64, F32 or BF16: dequantise it first");
        layer_.names.push_back(name);
        return source_.tensor(name);
    }

    const Tensors& part(Role role) {
        done_.push_back(role);
        return block_.parts.at(role);
    }
    const Tensors& required(Role role, const std::string& what) {
        if (!block_.has(role))
            reject(place_of_block(), "no " + what, "the block must have one");
        return part(role);
    }
    /// A role that is no tensor of one expert's.
    const std::string& single(Role role) {
        const Tensors& tensors = part(role);
        if (tensors.per_expert)
            reject(source_.where(tensors.names[0]), "of one expert",
                   "must be of all of them");
        return tensors.names[0];
    }
    std::string place_of_block() const {
        const auto& weight = block_.parts.at(Role::router_weight).names[0];
        return "the block of " + source_.where(weight);
    }
    void put(const std::string& name, Tensor tensor) {
        layer_.parameters[name] = std::move(tensor);
    }
    /// An array of our own for elements that move.
    Tensor make(const Shape& shape, DType dtype) {
        layer_.copied = true;
        return Tensor::empty(shape, dtype);
    }

    // -------------------------------------------------------------- router

    void read_router() {
        const MoEConfig& c = layer_.config;
        put("router.weight", take(single(Role::router_weight), {E_, c.hidden_size}));
        if (c.add_bias_linear)
            put("router.bias",
                take(required(Role::router_bias, "router bias").names[0], {E_}));
        if (block_.has(Role::expert_bias))
            read_expert_bias();
        else if (c.moe_router_enable_expert_bias)
            required(Role::expert_bias, "expert bias");
        if (c.is_quantile_balancing() && block_.has(Role::qb_beta))
            put("router.qb_beta", take(single(Role::qb_beta), {E_}));
        if (c.moe_router_hash_vocab_size) read_table();
    }

    void read_expert_bias() {
        const std::string& name = single(Role::expert_bias);
        // ERNIE's is (1, E)
        const Tensor bias = take(name, {E_}, {1, E_}).reshaped({E_});
        if (layer_.config.moe_router_enable_expert_bias)
            return put("router.expert_bias", bias);
        if (!model_.expert_bias_must_be_zero)
            reject(source_.where(name), "unexpected",
                   "the model's layer has no expert bias");
        const std::vector<double> values = to_doubles(bias);
        if (std::any_of(values.begin(), values.end(), [](double v) { return v != 0.0; }))
            reject(source_.where(name), "not zero",
                   "the layer lacks an expert bias beside softmax scores");
        layer_.notes.push_back("the expert bias is zero, and left out");
    }

    void read_table() {
        const std::string& name = required(Role::tid2eid, "table tid2eid").names[0];
        const Shape shape = {*layer_.config.moe_router_hash_vocab_size,
                             layer_.config.moe_router_topk};
        if (source_.shape(name) != shape)
            reject(source_.where(name), "shape " + to_string(source_.shape(name)),
                   "must have shape " + to_string(shape));
        layer_.names.push_back(name);
        put(kTid2Eid, source_.tensor(name));
    }

    // -------------------------------------------------------------- experts

    /// Where gates and ups lie in packed rows or columns of FC1.
    struct HalfOf {
        std::int64_t first, stride;
    };
    HalfOf half(bool up) const {
        if (!layer_.config.gated_linear_unit) return {0, 1};
        return packed_ == Packed::interleaved ? HalfOf{up ? 1 : 0, 2}
                                              : HalfOf{up ? F_ : 0, 1};
    }
    int halves() const { return layer_.config.gated_linear_unit ? 2 : 1; }
    bool transposed() const {
        return packed_ == Packed::columns || packed_ == Packed::interleaved;
    }

    /// By the flag, the tensor's shape, the file that moe convert wrote, or the model.
    Packed choose_packed(const Options& options) const {
        const auto fc1 = block_.parts.find(Role::fc1);
        if (fc1 == block_.parts.end() || fc1->second.per_expert) return Packed::rows;
        const std::string& name = fc1->second.names[0];
        if (options.fc1_layout) return parse_packed(*options.fc1_layout);
        if (const std::string said = source_.metadata(name, "moe_fc1_layout");
            !said.empty())
            return parse_packed(said);
        if (model_.packed == Packed::interleaved) return Packed::interleaved;
        const Shape shape = source_.shape(name);
        const bool rows = shape == Shape{E_, rows_, latent_};
        const bool columns = shape == Shape{E_, latent_, rows_};
        if (rows && columns && model_.packed == Packed::either)
            reject(source_.where(name), "shape " + to_string(shape),
                   "may be (E, 2F, H) or (E, H, 2F), and the model's code reads both: "
                   "say which with --fc1-layout rows or columns");
        if (rows && columns) return model_.packed;
        return columns ? Packed::columns : Packed::rows;
    }
    static Packed parse_packed(const std::string& text) {
        if (text == "rows") return Packed::rows;
        if (text == "columns") return Packed::columns;
        if (text == "interleaved") return Packed::interleaved;
        reject("fc1_layout", one_line(text), "must be rows, columns or interleaved");
    }

    void read_fc1() {
        if (block_.has(Role::fc1))
            read_whole_fc1();
        else
            read_fc1_parts();
        read_fc1_bias();
    }

    void read_whole_fc1() {
        const Tensors& tensors = part(Role::fc1);
        if (tensors.per_expert) {
            put("experts.linear_fc1.weight", gather_rows(tensors, rows_, latent_));
            return;
        }
        const std::string& name = tensors.names[0];
        if (!transposed()) {
            put("experts.linear_fc1.weight", take(name, {E_, rows_, latent_}));
            return;
        }
        const Tensor source = take(name, {E_, latent_, rows_});
        Tensor fc1 = make({E_, rows_, latent_}, source.dtype());
        const std::size_t size = size_of(source.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < halves(); ++up) {
                const HalfOf at = half(up);
                copy_strided(
                    {bytes(fc1, (e * rows_ + up * F_) * latent_), latent_, 1},
                    {bytes(source, e * rows_ * latent_ + at.first), at.stride, rows_}, F_,
                    latent_, size);
            }
        put("experts.linear_fc1.weight", fc1);
    }

    /// Gates and ups in tensors of their own; of experts without gates, ups alone.
    void read_fc1_parts() {
        const Tensors& ups = required(Role::fc1_up, "FC1 (gate_up_proj, up_proj, w3, …)");
        if (!layer_.config.gated_linear_unit) {
            if (ups.per_expert)
                put("experts.linear_fc1.weight", gather_rows(ups, F_, latent_));
            else
                put("experts.linear_fc1.weight", take(ups.names[0], {E_, F_, latent_}));
            return;
        }
        const Tensors& gates =
            required(Role::fc1_gate, "gates of FC1 (gate_proj, w1, …)");
        if (gates.per_expert != ups.per_expert || gates.stacked != ups.stacked)
            reject(source_.where(gates.names[0]), "unexpected",
                   "must lie as " + source_.where(ups.names[0]));
        Tensor fc1;
        for (const bool up : {false, true})
            fill_rows(fc1, up ? ups : gates, rows_, up ? F_ : 0, F_, latent_);
        put("experts.linear_fc1.weight", fc1);
    }

    void read_fc2() {
        const Tensors& tensors = required(Role::fc2, "FC2 (down_proj, w2, …)");
        const std::int64_t l = latent_;
        if (tensors.per_expert) {
            put("experts.linear_fc2.weight", gather_rows(tensors, l, F_));
        } else if (tensors.stacked || transposed()) {
            const Tensor source = take(
                tensors.names[0], tensors.stacked ? Shape{E_ * F_, l} : Shape{E_, F_, l});
            Tensor fc2 = make({E_, l, F_}, source.dtype());
            for (std::int64_t e = 0; e < E_; ++e)
                copy_strided({bytes(fc2, e * l * F_), F_, 1},
                             {bytes(source, e * l * F_), 1, l}, l, F_,
                             size_of(source.dtype()));
            put("experts.linear_fc2.weight", fc2);
        } else {
            put("experts.linear_fc2.weight", take(tensors.names[0], {E_, l, F_}));
        }
        if (!layer_.config.add_bias_linear) return;
        const Tensors& bias = required(Role::fc2_bias, "FC2 bias");
        put("experts.linear_fc2.bias", bias.per_expert ? gather_rows(bias, 1, l, true)
                                                       : take(bias.names[0], {E_, l}));
    }

    void read_fc1_bias() {
        if (!layer_.config.add_bias_linear) return;
        const Tensors& tensors = required(Role::fc1_bias, "FC1 bias");
        if (tensors.per_expert)
            return put("experts.linear_fc1.bias", gather_rows(tensors, 1, rows_, true));
        const Tensor source = take(tensors.names[0], {E_, rows_});
        if (packed_ != Packed::interleaved) return put("experts.linear_fc1.bias", source);
        Tensor bias = make({E_, rows_}, source.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < halves(); ++up) {
                const HalfOf at = half(up);
                copy_strided({bytes(bias, e * rows_ + up * F_), 1, 1},
                             {bytes(source, e * rows_ + at.first), at.stride, 1}, F_, 1,
                             size_of(source.dtype()));
            }
        put("experts.linear_fc1.bias", bias);
    }

    /// Each expert's (rows, columns) one after the other: (E, rows, columns).
    /// @param flat  an expert's is (columns), the result (E, columns)
    Tensor gather_rows(const Tensors& tensors, std::int64_t rows, std::int64_t columns,
                       bool flat = false) {
        Tensor all;
        fill_rows(all, tensors, rows, 0, rows, columns, flat);
        return flat ? all.reshaped({E_, columns}) : all;
    }

    /// Rows `first` to first + count of every expert's `rows`. Makes `all` at first.
    void fill_rows(Tensor& all, const Tensors& tensors, std::int64_t rows,
                   std::int64_t first, std::int64_t count, std::int64_t columns,
                   bool flat = false) {
        const bool one = !tensors.per_expert;
        const Shape shape =
            one ? tensors.stacked ? Shape{E_ * count, columns} : Shape{E_, count, columns}
            : flat ? Shape{columns}
                   : Shape{count, columns};
        Tensor source;
        for (std::int64_t e = 0; e < E_; ++e) {
            const std::string& name = tensors.names[one ? 0 : e];
            if (e == 0 || !one) source = take(name, shape);
            if (!all.defined()) all = make({E_, rows, columns}, source.dtype());
            if (source.dtype() != all.dtype())
                reject(source_.where(name), to_string(source.dtype()),
                       "must be " + to_string(all.dtype()) + " as the tensors before");
            copy_strided({bytes(all, (e * rows + first) * columns), columns, 1},
                         {bytes(source, one ? e * count * columns : 0), columns, 1},
                         count, columns, size_of(all.dtype()));
        }
    }

    static std::byte* bytes(const Tensor& tensor, std::int64_t element) {
        return static_cast<std::byte*>(tensor.view().bytes) +
               element * std::int64_t(size_of(tensor.dtype()));
    }

    // -------------------------------------------------------------- shared experts,
    // latent

    void read_shared() {
        const MoEConfig& c = layer_.config;
        const std::int64_t Fs = c.shared_ffn(), H = c.hidden_size;
        if (Fs == 0) return;
        const std::int64_t rows = c.fc1_rows(Fs);
        const std::string name = "shared_experts.linear_fc1.weight";
        if (block_.has(Role::shared_fc1)) {
            put(name, take(single(Role::shared_fc1), {rows, H}));
        } else if (!c.gated_linear_unit) {
            required(Role::shared_up, "up projection of the shared expert");
            put(name, take(single(Role::shared_up), {rows, H}));
        } else {
            required(Role::shared_gate, "gate projection of the shared expert");
            required(Role::shared_up, "up projection of the shared expert");
            const Tensor gate = take(single(Role::shared_gate), {Fs, H});
            const Tensor up = take(single(Role::shared_up), {Fs, H});
            if (gate.dtype() != up.dtype())
                reject(source_.where(single(Role::shared_up)), to_string(up.dtype()),
                       "must be " + to_string(gate.dtype()) + " as the gate's");
            Tensor both = make({rows, H}, gate.dtype());
            std::copy_n(bytes(gate, 0), gate.size_bytes(), bytes(both, 0));
            std::copy_n(bytes(up, 0), up.size_bytes(), bytes(both, Fs * H));
            put(name, both);
        }
        required(Role::shared_fc2, "down projection of the shared expert");
        put("shared_experts.linear_fc2.weight", take(single(Role::shared_fc2), {H, Fs}));
        if (!c.moe_shared_expert_gate) return;
        required(Role::shared_gate_weight, "gate of the shared expert");
        put("shared_experts.gate_weight", take(single(Role::shared_gate_weight), {1, H}));
    }

    void read_latent() {
        const MoEConfig& c = layer_.config;
        if (!c.moe_latent_size) return;
        const std::int64_t l = *c.moe_latent_size, H = c.hidden_size;
        const auto read = [&](Role role, const std::string& name, const Shape& shape) {
            required(role, name);
            put(name, take(single(role), shape));
        };
        read(Role::fc1_latent, "fc1_latent_proj.weight", {l, H});
        read(Role::fc2_latent, "fc2_latent_proj.weight", {H, l});
        if (!c.add_bias_linear) return;
        read(Role::fc1_latent_bias, "fc1_latent_proj.bias", {l});
        read(Role::fc2_latent_bias, "fc2_latent_proj.bias", {H});
    }

    // -------------------------------------------------------------- all of them

    void require_nothing_left() const {
        for (const auto& [role, tensors] : block_.parts)
            if (std::count(done_.begin(), done_.end(), role) == 0)
                reject(source_.where(tensors.names[0]), "unexpected",
                       "the layer of this config has no such tensor");
    }

    std::string layout_in_words() const {
        const auto word = [&](Role role) { return block_.parts.at(role).last; };
        const Tensors& fc2 = block_.parts.at(Role::fc2);
        std::string names = block_.has(Role::fc1) ? word(Role::fc1)
                            : block_.has(Role::fc1_gate)
                                ? word(Role::fc1_gate) + "/" + word(Role::fc1_up)
                                : word(Role::fc1_up);
        const std::string how = fc2.per_expert                   ? "per expert"
                                : fc2.stacked                    ? "stacked rows"
                                : packed_ == Packed::interleaved ? "packed, transposed, "
                                                                   "gates and ups in turn"
                                : transposed()                   ? "packed, transposed"
                                                                 : "packed";
        return how + ", " + names + "/" + fc2.last;
    }

    const Source& source_;
    const Block& block_;
    const Model& model_;
    Layer layer_;
    std::int64_t E_ = 0, F_ = 0, latent_ = 0, rows_ = 0;
    Packed packed_ = Packed::rows;
    std::vector<Role> done_;
};

Layer read_layer(const Source& source, const std::string& place, const Model& model,
                 std::int64_t layer, const Options& options) {
    const Block block = find_block(source, place, layer, model.config.num_experts());
    return Reader(source, block, model, options).read();
}

}  // namespace

Layer load_layer(const std::string& dir, std::int64_t layer, const Options& options) {
    const Source source = Source::folder(dir);
    const std::string path = dir + "/config.json";
    const Model model = read_model(read_text_file(path), path, layer);
    return read_layer(source, dir, model, layer, options);
}

Layer layer_from_tensors(const std::string& config_json, const TensorMap& tensors,
                         std::int64_t layer, const Options& options) {
    const Model model = read_model(config_json, "config.json", layer);
    return read_layer(Source::memory(tensors), "", model, layer, options);
}

}  // namespace moe::checkpoint
