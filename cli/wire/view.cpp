#include "cli/wire/view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/report/sheet.h"
#include "cli/terminal.h"
#include "cli/words.h"

namespace moe::wire {
namespace {

/// "0.21", "12.4", "157": milliseconds with three digits.
std::string milliseconds(double seconds) {
    const double ms = 1e3 * seconds;
    return fmt::format("{:.{}f}", ms, ms >= 99.5 ? 0 : ms >= 9.95 ? 1 : 2);
}

std::string of_experts(const Estimate& estimate, const Outlook& outlook) {
    return fmt::format("{:.0f} %", 100.0 * estimate.seconds() / outlook.experts_seconds);
}

std::string bytes_per_token(double bytes, const Outlook& outlook) {
    if (bytes == 0.0 || outlook.tokens == 0) return "-";
    return bytes_in_words(std::int64_t(bytes / double(outlook.tokens)));
}

std::vector<std::string> cells(const Estimate& e, const Outlook& outlook) {
    return {fmt::to_string(e.ranks),
            e.dispatcher,
            fmt::format("{:.2f}", e.rows),
            e.network_rows == 0.0 ? "-" : fmt::format("{:.2f}", e.network_rows),
            bytes_per_token(e.nvlink_bytes(), outlook),
            bytes_per_token(e.network_bytes(), outlook),
            milliseconds(e.seconds(false)),
            milliseconds(e.seconds(true)),
            of_experts(e, outlook)};
}

std::string link_in_words(const Link& link) {
    return fmt::format("{:.3g} us + bytes / {:.4g} GB/s", 1e6 * link.alpha,
                       1e-9 * link.beta);
}

std::string machine_in_words(const Machine& machine) {
    return fmt::format(
        "nodes of {}; NVLink {}; between nodes {}; both at once; products {:.4g} "
        "TFLOP/s",
        machine.gpus_per_node, link_in_words(machine.nvlink),
        link_in_words(machine.network), 1e-12 * machine.products);
}

std::string layer_of(const Outlook& outlook) {
    return fmt::format("{}: {}", outlook.model, layer_in_words(outlook.config));
}

void print_line(const std::string& name, const std::string& words) {
    fmt::print("{:<8}{}\n", name, wrapped(words, 8, terminal_width() - 8));
}

}  // namespace

void print_outlook(const Outlook& outlook, const Machine& machine) {
    print_line("Layer", layer_of(outlook));
    print_line("Tokens",
               fmt::format("{} a rank, bf16, evenly routed", grouped(outlook.tokens)));
    print_line("Model", machine_in_words(machine));
    print_line("", "no measurement: what the bytes take at least, if nothing else does");
    for (const std::string& reason : outlook.left_out) print_line("Without", reason);
    fmt::print(
        "\n{:14}{:^18}{:^20}{:^19}{:>9}\n"
        "EP  dispatcher      all  network    NVLink   network  forward  backward"
        "  experts\n",
        "", "rows per token, ⑥", "bytes per token", "ms", "of the");
    for (const Estimate& e : outlook.estimates) {
        const std::vector<std::string> c = cells(e, outlook);
        fmt::print("{:>2}  {:<10}{:>9}{:>9}{:>10}{:>10}{:>9}{:>10}{:>9}\n", c[0], c[1],
                   c[2], c[3], c[4], c[5], c[6], c[7], c[8]);
    }
    fmt::print("{}\n",
               wrapped("bytes: of ⑥, ⑩, ⑪ and ⑮; of the experts: forward and backward, "
                       "of the time of their products",
                       2));
}

nlohmann::ordered_json to_json(const Outlook& outlook, const Machine& machine) {
    const auto link = [](const Link& each) {
        return nlohmann::ordered_json{{"alpha_s", each.alpha},
                                      {"beta_bytes_per_s", each.beta}};
    };
    nlohmann::ordered_json json = {{"model_not_measured", true},
                                   {"layer", outlook.model},
                                   {"tokens_per_rank", outlook.tokens},
                                   {"gpus_per_node", machine.gpus_per_node},
                                   {"nvlink", link(machine.nvlink)},
                                   {"network", link(machine.network)},
                                   {"products_flop_per_s", machine.products},
                                   {"experts_s", outlook.experts_seconds}};
    for (const Estimate& e : outlook.estimates) {
        nlohmann::ordered_json steps;
        for (std::size_t i = 0; i < e.steps.size(); ++i)
            steps[title(kExchangeSteps[i])] = {
                {"nvlink_bytes", e.steps[i].nvlink_bytes},
                {"network_bytes", e.steps[i].network_bytes},
                {"rounds", e.steps[i].rounds},
                {"s", e.steps[i].seconds}};
        json["estimates"].push_back({{"expert_model_parallel_size", e.ranks},
                                     {"moe_token_dispatcher_type", e.dispatcher},
                                     {"rows_per_token", e.rows},
                                     {"network_rows_per_token", e.network_rows},
                                     {"steps", steps}});
    }
    return json;
}

// ------------------------------------------------------------------------------- picture
namespace {

constexpr double kLeft = 24.0, kRight = kSheetWidth - 24.0;
constexpr double kBarsFrom = 150.0, kBarsTo = 720.0;
constexpr double kRow = 18.0, kBar = 13.0, kGap = 10.0;

std::int64_t hue_of(const std::string& dispatcher) {
    return dispatcher == "allgather" ? 0 : dispatcher == "alltoall" ? 1 : 2;
}

/// Where the bars end.
double bars_end(const Outlook& outlook) {
    double y = kSheetTop + 22.0;
    std::int64_t last = 0;
    for (const Estimate& e : outlook.estimates) {
        if (last != 0 && e.ranks != last) y += kGap;
        last = e.ranks;
        y += kRow;
    }
    return y;
}

}  // namespace

std::string picture(const Outlook& outlook, const Machine& machine) {
    std::vector<double> values = {1e3 * outlook.experts_seconds};
    for (const Estimate& e : outlook.estimates) values.push_back(1e3 * e.seconds());
    const Axis axis(values, kBarsFrom, kBarsTo);
    Canvas canvas;
    canvas.text(kBarsFrom, kSheetTop + 12.0, "start",
                axis.is_log() ? "ms in the model, log scale" : "ms in the model", "soft");
    const double top = kSheetTop + 22.0, end = bars_end(outlook);
    for (const double tick : axis.ticks()) {
        canvas.line("grid", axis.at(tick), top, axis.at(tick), end);
        canvas.text(axis.at(tick), end + 14.0, "middle", tick_label(tick), "soft");
    }
    double y = top;
    std::int64_t last = 0;
    for (const Estimate& e : outlook.estimates) {
        if (last != 0 && e.ranks != last) y += kGap;
        const double line = y + 0.5 * kRow + 4.0;
        if (e.ranks != last)
            canvas.text(kLeft, line, "start", fmt::format("EP {}", e.ranks), "head");
        last = e.ranks;
        canvas.text(kBarsFrom - 8.0, line, "end", e.dispatcher, "soft");
        const double to = axis.at(1e3 * e.seconds());
        canvas.rect(hue(hue_of(e.dispatcher)), kBarsFrom, y + 0.5 * (kRow - kBar),
                    to - kBarsFrom, kBar,
                    fmt::format("{:.2f} rows per token, {:.2f} of them over the network",
                                e.rows, e.network_rows));
        const std::string words =
            fmt::format("{} ms, {}", milliseconds(e.seconds()), of_experts(e, outlook));
        canvas.rect("ground", to + 4.0, y + 1.0, text_width(words, 12.0), kRow - 2.0);
        canvas.text(to + 7.0, line, "start", words, "soft");
        y += kRow;
    }
    const double experts = axis.at(1e3 * outlook.experts_seconds);
    for (const char* pen : {"halo", "floor"})
        canvas.line(pen, experts, top - 2.0, experts, end);
    const double key = kBarsTo - 60.0;
    canvas.line("floor", key, kSheetTop + 2.0, key, kSheetTop + 16.0);
    canvas.text(key + 8.0, kSheetTop + 12.0, "start", "the experts’ products: 100 %",
                "soft");
    return standalone_svg(
        canvas, end + 26.0,
        fmt::format("{}: a layer’s exchanges, forward and backward (model)",
                    outlook.model),
        fmt::format("no measurement: {} tokens a rank, evenly routed; {:.4g} GB/s in "
                    "nodes of {}, {:.4g} GB/s between them",
                    grouped(outlook.tokens), 1e-9 * machine.nvlink.beta,
                    machine.gpus_per_node, 1e-9 * machine.network.beta));
}

// ---------------------------------------------------------------------------------- page
std::vector<Outlook> presets(std::int64_t tokens, const Machine& machine) {
    std::vector<Outlook> outlooks;
    for (const std::string& name : preset_names())
        outlooks.push_back(look_ahead(
            name, preset(name, 1), {"allgather", "alltoall", "flex"}, tokens, machine));
    return outlooks;
}

Regions page_regions(const std::vector<Outlook>& outlooks, const Machine& machine) {
    Regions regions = {{"machine", fmt::format("{} tokens a rank, bf16; {}.\n",
                                               grouped(outlooks.at(0).tokens),
                                               machine_in_words(machine))}};
    for (const Outlook& outlook : outlooks) {
        std::string table =
            "| EP | dispatcher | rows per token in ⑥ | over the network | bytes per "
            "token, NVLink | network | ms forward (model) | backward | of the experts "
            "|\n|---:|---|---:|---:|---:|---:|---:|---:|---:|\n";
        for (const Estimate& e : outlook.estimates)
            table += fmt::format("| {} |\n", fmt::join(cells(e, outlook), " | "));
        regions[outlook.model] = layer_of(outlook) + ".\n\n" + table;
    }
    return regions;
}

}  // namespace moe::wire
