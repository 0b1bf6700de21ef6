#include "core/checkpoint/experts.h"

#include "core/checkpoint/strided.h"
#include "core/error.h"

namespace moe::checkpoint {
namespace {

/// By the flag, what moe convert wrote beside it, the shape, or the model.
Packed choose_packed(const Taker& taker, const Model& model, const Options& options) {
    const auto fc1 = taker.block().parts.find(Role::fc1);
    if (fc1 == taker.block().parts.end() || fc1->second.per_expert) return Packed::rows;
    const std::string& name = fc1->second.names[0];
    if (options.fc1_layout) return parse_packed(*options.fc1_layout);
    if (const std::string said = taker.source().metadata(name, "moe_fc1_layout");
        !said.empty())
        return parse_packed(said);
    if (model.packed == Packed::interleaved) return Packed::interleaved;
    const MoEConfig& c = model.config;
    const std::int64_t E = c.num_experts(), Z = c.fc1_rows(c.ffn()), l = c.latent_size();
    const Shape shape = taker.source().shape(name);
    const bool rows = shape == Shape{E, Z, l}, columns = shape == Shape{E, l, Z};
    if (rows && columns && model.packed == Packed::either)
        reject(taker.source().where(name), "shape " + to_string(shape),
               "may be (E, 2F, H) or (E, H, 2F), and the model's code reads both: say "
               "which with --fc1-layout rows or columns");
    if (rows && columns) return model.packed;
    return columns ? Packed::columns : Packed::rows;
}

class ExpertsReader {
  public:
    ExpertsReader(Taker& taker, const Model& model, const Options& options)
        : taker_(taker), config_(model.config) {
        packed_ = choose_packed(taker, model, options);
    }

    Tensor fc1() {
        if (!taker_.has(Role::fc1)) return fc1_of_parts();
        const Tensors& tensors = taker_.part(Role::fc1);
        if (tensors.per_expert) return gather_rows(tensors, Z_, l_);
        if (!transposed()) return taker_.take(tensors.names[0], {E_, Z_, l_});
        const Tensor source = taker_.take(tensors.names[0], {E_, l_, Z_});
        Tensor all = taker_.make({E_, Z_, l_}, source.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < Z_ / F_; ++up) {
                const Half at = half(up);
                copy_strided({bytes_at(all, (e * Z_ + up * F_) * l_), l_, 1},
                             {bytes_at(source, e * Z_ * l_ + at.first), at.stride, Z_},
                             F_, l_, size_of(source.dtype()));
            }
        return all;
    }

    Tensor fc2() {
        const Tensors& tensors = taker_.required(Role::fc2, "FC2 (down_proj, w2, …)");
        if (tensors.per_expert) return gather_rows(tensors, l_, F_);
        if (!tensors.stacked && !transposed())
            return taker_.take(tensors.names[0], {E_, l_, F_});
        const Shape shape = tensors.stacked ? Shape{E_ * F_, l_} : Shape{E_, F_, l_};
        const Tensor source = taker_.take(tensors.names[0], shape);
        Tensor all = taker_.make({E_, l_, F_}, source.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            copy_strided({bytes_at(all, e * l_ * F_), F_, 1},
                         {bytes_at(source, e * l_ * F_), 1, l_}, l_, F_,
                         size_of(source.dtype()));
        return all;
    }

    Tensor fc1_bias() {
        const Tensors& tensors = taker_.required(Role::fc1_bias, "FC1 bias");
        if (tensors.per_expert) return gather_rows(tensors, 1, Z_, true);
        const Tensor source = taker_.take(tensors.names[0], {E_, Z_});
        if (packed_ != Packed::interleaved) return source;
        Tensor all = taker_.make({E_, Z_}, source.dtype());
        for (std::int64_t e = 0; e < E_; ++e)
            for (int up = 0; up < Z_ / F_; ++up) {
                const Half at = half(up);
                copy_strided({bytes_at(all, e * Z_ + up * F_), 1, 1},
                             {bytes_at(source, e * Z_ + at.first), at.stride, 1}, F_, 1,
                             size_of(source.dtype()));
            }
        return all;
    }

    Tensor fc2_bias() {
        const Tensors& tensors = taker_.required(Role::fc2_bias, "FC2 bias");
        return tensors.per_expert ? gather_rows(tensors, 1, l_, true)
                                  : taker_.take(tensors.names[0], {E_, l_});
    }

    std::string layout() const {
        const auto& parts = taker_.block().parts;
        const auto word = [&](Role role) { return parts.at(role).last + "/"; };
        const Tensors& fc2 = parts.at(Role::fc2);
        std::string names;
        for (const Role role : {Role::fc1, Role::fc1_gate, Role::fc1_up})
            if (parts.contains(role)) names += word(role);
        const std::string how = fc2.per_expert ? "per expert, "
                                : fc2.stacked  ? "stacked rows, "
                                : packed_ == Packed::interleaved
                                    ? "packed, transposed, gates and ups in turn, "
                                : transposed() ? "packed, transposed, "
                                               : "packed, ";
        return how + names + fc2.last;
    }

  private:
    Half half(bool up) const { return half_of(packed_, Z_ > F_, up, F_); }
    bool transposed() const {
        return packed_ == Packed::columns || packed_ == Packed::interleaved;
    }

    /// Gates and ups in tensors of their own; of experts without gates, ups alone.
    Tensor fc1_of_parts() {
        const Tensors& ups =
            taker_.required(Role::fc1_up, "FC1 (gate_up_proj, up_proj, w3, …)");
        if (!config_.gated_linear_unit)
            return ups.per_expert ? gather_rows(ups, F_, l_)
                                  : taker_.take(ups.names[0], {E_, F_, l_});
        const Tensors& gates =
            taker_.required(Role::fc1_gate, "gates of FC1 (gate_proj, w1, …)");
        if (gates.per_expert != ups.per_expert || gates.stacked != ups.stacked)
            reject(taker_.source().where(gates.names[0]), "unexpected",
                   "must lie as " + taker_.source().where(ups.names[0]));
        Tensor all;
        fill_rows(all, gates, Z_, 0, F_, l_);
        fill_rows(all, ups, Z_, F_, F_, l_);
        return all;
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
        const Shape shape = tensors.stacked ? Shape{E_ * count, columns}
                            : one           ? Shape{E_, count, columns}
                            : flat          ? Shape{columns}
                                            : Shape{count, columns};
        Tensor source;
        for (std::int64_t e = 0; e < E_; ++e) {
            const std::string& name = tensors.names[one ? 0 : e];
            if (e == 0 || !one) source = taker_.take(name, shape);
            if (!all.defined()) all = taker_.make({E_, rows, columns}, source.dtype());
            if (source.dtype() != all.dtype())
                reject(taker_.source().where(name), to_string(source.dtype()),
                       "must be " + to_string(all.dtype()) + " as the tensors before");
            copy_strided({bytes_at(all, (e * rows + first) * columns), columns, 1},
                         {bytes_at(source, one ? e * count * columns : 0), columns, 1},
                         count, columns, size_of(all.dtype()));
        }
    }

    Taker& taker_;
    const MoEConfig& config_;
    Packed packed_ = Packed::rows;
    std::int64_t E_ = config_.num_experts(), F_ = config_.ffn(),
                 l_ = config_.latent_size(), Z_ = config_.fc1_rows(F_);
};

}  // namespace

Half half_of(Packed packed, bool gated, bool up, std::int64_t ffn) {
    if (!gated) return {0, 1};
    if (packed == Packed::interleaved) return {up ? 1 : 0, 2};
    return {up ? ffn : 0, 1};
}

Packed parse_packed(const std::string& text) {
    if (text == "rows") return Packed::rows;
    if (text == "columns") return Packed::columns;
    if (text == "interleaved") return Packed::interleaved;
    reject("fc1_layout", text, "must be rows, columns or interleaved");
}

std::string read_experts(Taker& taker, const Model& model, const Options& options,
                         Layer& layer) {
    ExpertsReader reader(taker, model, options);
    layer.parameters["experts.linear_fc1.weight"] = reader.fc1();
    layer.parameters["experts.linear_fc2.weight"] = reader.fc2();
    if (model.config.add_bias_linear) {
        layer.parameters["experts.linear_fc1.bias"] = reader.fc1_bias();
        layer.parameters["experts.linear_fc2.bias"] = reader.fc2_bias();
    }
    return reader.layout();
}

}  // namespace moe::checkpoint
