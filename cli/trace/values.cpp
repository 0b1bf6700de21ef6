// values.cpp: tensors in print, their rows named.

#include "cli/trace/values.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/terminal.h"
#include "core/transfer.h"

namespace moe {
namespace {

constexpr std::int64_t kMost = 16;  // rows, and values of a row

/// Four digits; zero never carries a sign, so that tiers can be compared line by line.
std::string format_value(double value, bool floating) {
    if (!floating) return fmt::format("{:>5}", static_cast<std::int64_t>(value));
    const std::string text = fmt::format("{:>10.4f}", value);
    return text == "   -0.0000" ? "    0.0000" : text;
}

/// How many words of that many columns, each behind a blank, a line has room for.
std::int64_t words_in_line(std::size_t indent, std::size_t columns) {
    const std::size_t taken = indent + columns_of(" …");
    const std::size_t width = std::max(terminal_width(), taken);
    return std::max<std::int64_t>(1, std::int64_t((width - taken) / (columns + 1)));
}

/// The first values of a row behind its label; what the terminal has no room for stands
/// in lines below.
void print_row(const std::string& label, const double* values, std::int64_t count,
               bool floating) {
    const std::int64_t shown = std::min(count, kMost);
    const std::int64_t in_line = words_in_line(columns_of(label), floating ? 10 : 5);
    std::string line = label;
    for (std::int64_t i = 0; i < shown; ++i) {
        if (i > 0 && i % in_line == 0) line += "\n" + std::string(columns_of(label), ' ');
        line += " " + format_value(values[i], floating);
    }
    fmt::print("{}{}\n", line, count > kMost ? " …" : "");
}

/// One axis with names: each stands over its value.
void print_columns(const Names& names, const std::vector<double>& values, bool floating) {
    const std::string indent = "   ";
    const auto shown = std::min(std::int64_t(values.size()), kMost);
    const std::int64_t in_line = words_in_line(indent.size(), 10);
    for (std::int64_t first = 0; first < shown; first += in_line) {
        const std::int64_t end = std::min(first + in_line, shown);
        std::string line = indent;
        for (std::int64_t i = first; i < end; ++i)
            line += fmt::format(" {:>10}", names[i]);
        fmt::print("{}\n", line);
        line = indent;
        for (std::int64_t i = first; i < end; ++i)
            line += fmt::format(" {:>10}", format_value(values[i], floating));
        fmt::print("{}{}\n", line,
                   end == shown && std::int64_t(values.size()) > kMost ? " …" : "");
    }
}

std::string row_label(const std::string& name) {
    return fmt::format("    {:<7}", name);
}

}  // namespace

Names name_tokens(std::int64_t tokens) {
    Names names;
    for (std::int64_t t = 0; t < tokens; ++t) names.push_back(fmt::format("t{}", t));
    return names;
}

void print_step(Step step) {
    fmt::print("\n{} {}\n", circled(step), title(step));
}

void print_tensor(const std::string& name, const TensorView& tensor, const Names& names) {
    fmt::print("  {} {} {}\n", name, to_string(tensor.shape), to_string(tensor.dtype));
    const std::vector<double> values = to_doubles(tensor);
    const bool floating = is_floating(tensor.dtype);
    if (tensor.shape.size() == 1 && !names.empty())
        return print_columns(names, values, floating);
    const std::int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
    const std::int64_t rows =
        columns == 0 ? 0 : static_cast<std::int64_t>(values.size()) / columns;
    for (std::int64_t row = 0; row < std::min(rows, kMost); ++row)
        print_row(names.empty() ? "   " : row_label(names[row]),
                  values.data() + row * columns, columns, floating);
    if (rows > kMost) fmt::print("    … and {} more rows\n", rows - kMost);
}

void print_summary(const std::string& name, const TensorView& tensor) {
    fmt::print("  {} {} {}, of all tokens\n", name, to_string(tensor.shape),
               to_string(tensor.dtype));
}

void print_rows(const std::string& name, const TensorView& tensor, const Names& names,
                const std::vector<std::int64_t>& rows) {
    fmt::print("  {} {} {}\n", name, to_string(tensor.shape), to_string(tensor.dtype));
    const std::vector<double> values = to_doubles(tensor);
    const auto columns = std::int64_t(values.size() / names.size());
    for (const std::int64_t row : rows)
        print_row(row_label(names[row]), values.data() + row * columns, columns,
                  is_floating(tensor.dtype));
}

// ------------------------------------------------------------------------ whose rows
void RowNames::learn(const std::string& name, const TensorView& view) {
    if (name == "routing_map") {
        map_ = to_doubles(view);
        num_experts_ = view.shape.back();
    }
    if (name != "row_token") return;
    const std::vector<double> token = to_doubles(view);
    const auto E = std::size_t(num_experts_);
    for (std::size_t e = 0; e < E; ++e)
        for (std::size_t at = e; at < map_.size() && rows_.size() < token.size(); at += E)
            if (map_[at] != 0.0)
                rows_.push_back({std::int64_t(token[rows_.size()]), std::int64_t(e)});
    for (const DispatchedRow& row : rows_)
        names_.push_back(fmt::format("t{}→e{}", row.token, row.expert));
}

RowNames::Rows RowNames::rows_of(Step step, const std::string& name,
                                 const TensorView& view) const {
    // row_token and counts are no rows' values
    if (view.shape.empty() || (view.shape.size() == 1 && !is_floating(view.dtype)))
        return Rows::none;
    const bool between = (step >= Step::dispatch && step <= Step::fc2) ||
                         (step >= Step::combine_backward && step <= Step::fc1_backward);
    // A row for each token comes in and goes out again, with moe_latent_size
    const bool projected = name == "latent_hidden_states" || name == "d_latent_output";
    const bool dispatched = between && !projected &&
                            !(sends_tokens_ && (name == "sent_hidden_states" ||
                                                name == "received_hidden_states"));
    const Names& names = dispatched ? names_ : tokens_;
    if (view.shape.front() != std::int64_t(names.size())) return Rows::none;
    return dispatched ? Rows::dispatched : Rows::tokens;
}

const Names& RowNames::names_of(Step step, const std::string& name,
                                const TensorView& view) const {
    static const Names kNone;
    switch (rows_of(step, name, view)) {
        case Rows::tokens: return tokens_;
        case Rows::dispatched: return names_;
        case Rows::none: break;
    }
    return kNone;
}

}  // namespace moe
