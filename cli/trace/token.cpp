// token.cpp: one token's way through the layer and back.

#include "cli/trace/token.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/terminal.h"
#include "core/latent_projection.h"
#include "core/transfer.h"

namespace moe {
namespace {

constexpr std::int64_t kFew = 16;  // values that are printed whole

/// The values of row `row` of a tensor.
std::vector<double> row_values(const TensorView& tensor, std::int64_t row) {
    const std::vector<double> values = to_doubles(tensor);
    const auto columns = std::ptrdiff_t(tensor.shape.back());
    return {values.begin() + row * columns, values.begin() + (row + 1) * columns};
}

/// Whether a value's rows (T, E) have a number for every expert.
bool is_per_expert(const std::string& name) {
    return name.ends_with("probs") || name.starts_with("d_logits") ||
           name == "routing_map" || name == "aux_scores";
}

/// A line of words beneath a value.
void say(const std::string& words) {
    fmt::print("{}\n", wrapped("    " + words, 4));
}

/// "a", "a and b", "a, b and c".
std::string list(const Names& words) {
    std::string text;
    for (std::size_t i = 0; i < words.size(); ++i)
        text += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
    return text;
}

}  // namespace

std::string text_around(const TextTokens& text, std::int64_t token) {
    constexpr std::int64_t kAround = 24;
    const std::int64_t B = text.micro_batch, s = token / B, b = token % B;
    const std::int64_t first = std::max<std::int64_t>(0, s - kAround);
    const std::int64_t end = std::min(text.seq_len, s + kAround + 1);
    std::string around = first > 0 ? "…" : "";
    for (std::int64_t at = first; at < end; ++at) {
        const char byte = char(text.bytes[at * B + b]);
        const bool printable = byte >= ' ' && byte <= '~';
        const std::string shown = printable ? std::string(1, byte) : "·";
        around += at == s ? "[" + shown + "]" : shown;
    }
    return around + (end < text.seq_len ? "…" : "") +
           fmt::format(", byte 0x{:02X}", text.bytes[token]);
}

void TokenPrinter::on_value(Step step, const std::string& name, const TensorView& view) {
    if (step != last_) print_step(step);
    last_ = step;
    names_.learn(name, view);
    print_own_rows(step, name, view);
    explain(name, view);
}

void TokenPrinter::print_own_rows(Step step, const std::string& name,
                                  const TensorView& view) {
    const RowNames::Rows rows = names_.rows_of(step, name, view);
    if (rows == RowNames::Rows::tokens && is_per_expert(name) && !chosen_.empty() &&
        config_.num_experts() > kFew)
        print_chosen(name, view);
    else if (rows == RowNames::Rows::tokens)
        print_rows(name, view, names_.names_of(step, name, view), {token_});
    else if (rows == RowNames::Rows::dispatched)
        print_rows(name, view, names_.names_of(step, name, view), rows_);
    else if (view.numel() <= kFew)
        print_tensor(name, view);
    else
        print_summary(name, view);
}

void TokenPrinter::print_chosen(const std::string& name, const TensorView& view) const {
    fmt::print("  {} {} {}, of the experts that it chose\n", name, to_string(view.shape),
               to_string(view.dtype));
    const std::vector<double> values = row_values(view, token_);
    std::string line = fmt::format("    t{:<6}", token_);
    for (const std::int64_t expert : chosen_)
        line += is_floating(view.dtype)
                    ? fmt::format("  e{}={:.4f}", expert, values[expert] + 0.0)
                    : fmt::format("  e{}={}", expert, std::int64_t(values[expert]));
    fmt::print("{}\n", wrapped(line, 13));
}

void TokenPrinter::explain(const std::string& name, const TensorView& view) {
    if (name == "topk_idx") {
        for (const double expert : row_values(view, token_))
            chosen_.push_back(std::int64_t(expert));
    } else if (name == "topk_probs") {
        explain_choice(view);
    } else if (name == "routing_map") {
        explain_dropping(view);
    } else if (name == "row_token") {
        explain_rows();
    } else if (name == name_of_output(config_)) {
        explain_output();
    } else if (name == "output") {  // with moe_latent_size
        say(config_.shared_ffn() > 0
                ? "fc2_latent_proj of latent_output, and shared_output in ①"
                : "fc2_latent_proj of latent_output");
    } else if (name == name_of_dhidden(config_)) {
        say(rows_.empty() ? "zero: it has no row" : "the sum of its rows in ⑭");
    }
}

void TokenPrinter::explain_choice(const TensorView& topk_probs) const {
    const std::vector<double> probs = row_values(topk_probs, token_);
    Names choices;
    for (const std::int64_t expert : chosen_)
        choices.push_back(fmt::format("e{} ({:.4f})", expert, probs[expert]));
    say(fmt::format(
        "t{} chooses {}{}{}", token_, list(choices),
        config_.moe_router_num_groups ? ", among the experts of the best groups" : "",
        config_.is_quantile_balancing()         ? ", by logit less beta"
        : config_.moe_router_enable_expert_bias ? ", by probability plus expert bias"
                                                : ""));
}

void TokenPrinter::explain_dropping(const TensorView& routing_map) const {
    const std::vector<double> routed = row_values(routing_map, token_);
    for (std::int64_t expert = 0; expert < std::int64_t(routed.size()); ++expert) {
        const bool chosen = std::count(chosen_.begin(), chosen_.end(), expert) > 0;
        const std::string row = fmt::format("t{}→e{}", token_, expert);
        if (chosen && routed[expert] == 0.0)
            say(fmt::format("{} is dropped: e{} has as many as it takes, {}", row, expert,
                            config_.moe_token_drop_policy == "probs"
                                ? "with higher probabilities"
                                : "which come before"));
        else if (!chosen && routed[expert] != 0.0)
            say(fmt::format("{} fills up the share of e{}, with weight 0", row, expert));
    }
}

void TokenPrinter::explain_rows() {
    const std::vector<DispatchedRow>& all = names_.dispatched();
    Names places;
    for (std::size_t row = 0; row < all.size(); ++row)
        if (all[row].token == token_) {
            rows_.push_back(std::int64_t(row));
            places.push_back(fmt::format("row {} (e{})", row, all[row].expert));
        }
    if (places.empty())
        say(fmt::format("t{} has no row: all of its choices are dropped", token_));
    else
        say(fmt::format("t{} is in {}; there are {} rows, counted from 0", token_,
                        list(places), all.size()));
}

void TokenPrinter::explain_output() const {
    // With moe_latent_size they are added behind fc2_latent_proj
    const bool shared = config_.shared_ffn() > 0 && !config_.moe_latent_size;
    if (rows_.empty())
        say(shared ? "shared_output of ① alone: it has no row" : "zero: it has no row");
    else
        say(fmt::format("the sum of its rows in ⑨{}",
                        shared ? ", and of shared_output in ①" : ""));
}

}  // namespace moe
