// traffic_view.cpp: what went over the links, on a terminal.

#include "cli/ranks/traffic_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "cli/ranks/asked.h"
#include "cli/terminal.h"
#include "cli/words.h"

namespace moe {
namespace {

constexpr int kMostInMatrix = 8;  // ranks; the report draws any number
constexpr int kRowsWidth = 6, kBytesWidth = 9;

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

/// The column with the narrowest rows, as `moe compare` counts bytes.
const RankColumn& shown_column(const DispatcherOutcome& outcome) {
    return outcome.columns.back();
}

/// Who sends to whom in ⑥, rows and, where there is room, bytes; ⑩ sends the other way.
void print_matrix(const DispatcherOutcome& outcome, bool with_bytes) {
    const RankColumn& column = shown_column(outcome);
    const Links bytes = column.sent_in({Step::dispatch});
    const Links forward = column.sent_in({Step::dispatch, Step::combine});
    const Links backward =
        column.sent_in({Step::combine_backward, Step::dispatch_backward});
    const int W = int(outcome.rows.size());
    const auto print_line = [&](const std::string& begin, auto row_cell, auto byte_cell,
                                const std::string& sent, const std::string& back) {
        std::string line = begin;
        for (int to = 0; to < W; ++to)
            line += fmt::format("{:>{}}", row_cell(to), kRowsWidth);
        if (with_bytes) line += "   ";
        for (int to = 0; with_bytes && to < W; ++to)
            line += fmt::format("{:>{}}", byte_cell(to), kBytesWidth);
        fmt::print("{}  {:>10} {:>10}\n", line, sent, back);
    };
    std::string line =
        fmt::format("\n{:<9}   {:<{}}", outcome.name(), "rows, ⑥", kRowsWidth * W);
    if (with_bytes) line += fmt::format("   {:<{}}", "bytes, ⑥", kBytesWidth * W);
    fmt::print("{}  {:>10} {:>10}\n", line, "sent", "sent");
    const auto rank = [](int to) { return fmt::to_string(to); };
    print_line("from \\ to   ", rank, rank, "forward", "backward");
    for (int from = 0; from < W; ++from)
        print_line(
            fmt::format("{:>9}   ", from),
            [&](int to) {
                return from == to ? "·" : fmt::to_string(outcome.rows[from][to]);
            },
            [&](int to) { return from == to ? "·" : bytes_in_words(bytes[from][to]); },
            bytes_in_words(sum(forward[from])), bytes_in_words(sum(backward[from])));
}

}  // namespace

void print_traffic(const RankComparison& c) {
    const RankColumn& shown = shown_column(c.dispatchers[0]);
    const DType dtype = shown.spec.dispatcher.dtype;
    const double T = double(std::max<std::int64_t>(1, c.num_tokens()));
    fmt::print("\nSent to other ranks, counted in {}; a row is {} x {} = {}\n",
               shown.label, c.config().moe_latent_size ? "ℓ" : "H", size_of(dtype),
               bytes_in_words(c.config().latent_size() * std::int64_t(size_of(dtype))));
    const bool wide = terminal_width() >= 101;
    const int rows = wide ? 9 : 8, balanced = wide ? 13 : 9, bytes = wide ? 11 : 8,
              waits = wide ? 12 : 8, theirs = wide ? 12 : 11;
    fmt::print("{:<11}{:^{}}{:^{}}host waits, forward\n", "", "rows per token, ⑥",
               rows + balanced, "bytes per token", 4 * bytes + (wide ? 2 : 0));
    fmt::print("{:<11}{:>{}}{:>{}}", "dispatcher", "counted", rows,
               wide ? "if balanced" : "balanced", balanced);
    for (const Step step : kExchangeSteps)
        fmt::print("{:>{}}", circled(step) + (is_backward(step) ? " back" : "     "),
                   bytes);
    fmt::print("{:>{}}{:>{}}\n", "counted", waits, "Megatron's", theirs);
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        const RankColumn& column = shown_column(outcome);
        fmt::print("{:<11}{:>{}.2f}{:>{}.2f}", outcome.name(), outcome.rows_per_token,
                   rows, outcome.balanced_rows_per_token, balanced);
        for (const Step step : kExchangeSteps)
            fmt::print(
                "{:>{}}",
                bytes_in_words(std::int64_t(double(total(column.sent_in({step}))) / T)),
                bytes);
        fmt::print("{:>{}}{:>{}}\n", column.host_waits, waits,
                   outcome.megatron_host_waits, theirs);
    }
    if (recomputes(c.config(), "moe"))
        fmt::print("⑥ and ⑩ are sent again in backward: their bytes are of both\n");
    for (const DispatcherOutcome& outcome : c.dispatchers)
        if (outcome.name() == "flex" && c.hit > 0.0)
            fmt::print(
                "{}\n",
                wrapped(
                    fmt::format(
                        "A token's {} experts lie on {:.2f} ranks ({:.2f} if balanced): "
                        "flex makes {:.2f} times fewer copies than alltoall, those that "
                        "stay "
                        "included",
                        c.config().moe_router_topk, c.hit, c.balanced_hit,
                        double(c.config().moe_router_topk) / c.hit),
                    2));
}

std::string RankColumn::short_label() const {
    return label.find(' ') == std::string::npos ? label : "--spec";
}

std::string AskedKind::in_words(const RankColumn& column) const {
    if (!column.spec.uses_device()) return "·";
    const std::int64_t more = column.asked.*by_exchanges;
    return fmt::format("{}{}", column.asked.*own,
                       more == 0 ? "" : fmt::format(" + {}", more));
}

bool RankComparison::uses_device() const {
    const auto& columns = dispatchers.at(0).columns;
    return std::any_of(columns.begin(), columns.end(), [](const RankColumn& column) {
        return column.spec.uses_device();
    });
}

void print_asked(const RankComparison& c) {
    if (!c.uses_device()) return;
    constexpr int kLabel = 18, kCell = 10, kGap = 2;
    const std::string exchanges =
        c.sizes.world == 1 ? "" : " (+ n: by its exchanges over " + c.backend + ")";
    const std::int64_t ffn = narrowed(c.config()).ffn();
    const std::string narrow =
        ffn == c.config().ffn() ? "" : fmt::format(", with F={}", ffn);
    fmt::print(
        "\n{}\n",
        wrapped("Asked of the device in one forward and backward, by the rank that "
                "asks most" +
                    exchanges + "; counted where nobody watches" + narrow,
                2));
    const auto print_row = [&](const std::string& label, auto cell) {
        std::string line = fmt::format("{:<{}}", label, kLabel);
        for (const AskedKind& kind : kAskedKinds) {
            if (&kind != kAskedKinds.data()) line += std::string(kGap, ' ');
            for (const DispatcherOutcome& outcome : c.dispatchers)
                line += fmt::format("{:>{}}", cell(kind, outcome), kCell);
        }
        fmt::print("{}\n", line);
    };
    print_row("", [&](const AskedKind& kind, const DispatcherOutcome& outcome) {
        return &outcome == &c.dispatchers.back() ? kind.title : "";
    });
    print_row("", [](const AskedKind&, const DispatcherOutcome& outcome) {
        return outcome.name();
    });
    for (std::size_t i = 0; i < c.dispatchers[0].columns.size(); ++i)
        print_row(c.dispatchers[0].columns[i].short_label(),
                  [i](const AskedKind& kind, const DispatcherOutcome& outcome) {
                      return kind.in_words(outcome.columns[i]);
                  });
}

void print_beside(const RankComparison& c) {
    std::string lines;
    for (const DispatcherOutcome& outcome : c.dispatchers)
        for (const RankColumn& column : outcome.columns)
            if (const Schedule& s = column.schedule; s.beside() > 0)
                lines += fmt::format(
                    "  {}, {}: {} of a second stream beside {} of the "
                    "first\n",
                    column.short_label(), outcome.name(), s.beside(), s.with());
    if (lines.empty()) return;
    fmt::print("\n{}\n{}",
               wrapped("Kernels and exchanges that may run at once, by streams and "
                       "events; whether they do, a device says",
                       2),
               lines);
}

void print_matrices(const RankComparison& c, const std::string& report) {
    if (c.sizes.world > kMostInMatrix) {
        fmt::print("\nWho sends to whom: the report draws it for {} ranks\n",
                   c.sizes.world);
    } else if (c.sizes.world > 1) {
        const TableParts parts({"bytes on every link"}, [&](std::size_t gone) {
            return 12 + c.sizes.world * kRowsWidth + 23 +
                   (gone == 0 ? 3 + c.sizes.world * kBytesWidth : 0);
        });
        for (const DispatcherOutcome& outcome : c.dispatchers)
            print_matrix(outcome, parts.has(0));
        fmt::print("{}", parts.note(report));
    }
}

}  // namespace moe
