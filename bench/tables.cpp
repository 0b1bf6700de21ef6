// tables.cpp: results as markdown.

#include "bench/tables.h"

#include <fmt/ranges.h>

#include <set>

#include "bench/result_words.h"
#include "cli/report/svg.h"
#include "cli/words.h"

namespace moe::bench {
namespace {

/// Rows of cells below a head; a head that ends in ":" is a column of words, to the left.
class Table {
  public:
    explicit Table(std::vector<std::string> head) {
        std::string rule = "|";
        for (std::string& name : head) {
            const bool words = name.ends_with(':');
            if (words) name.pop_back();
            rule += words ? "---|" : "---:|";
        }
        text_ = fmt::format("| {} |\n{}\n", fmt::join(head, " | "), rule);
    }
    void add(const std::vector<std::string>& cells) {
        text_ += fmt::format("| {} |\n", fmt::join(cells, " | "));
        ++rows_;
    }
    std::string text() const { return rows_ == 0 ? "" : text_; }

  private:
    std::string text_;
    int rows_ = 0;
};

std::string timing(const Timing& ms) {
    return fmt::format("{} ({} – {})", three_digits(ms.median), three_digits(ms.p10),
                       three_digits(ms.p90));
}

/// "12.3 (45 %)": a rate and its share of a ceiling, which is 0 where it is not known.
std::string rate(double value, double ceiling) {
    if (value == 0.0) return "–";
    if (ceiling == 0.0) return three_digits(value);
    return fmt::format("{} ({})", three_digits(value), share(value / ceiling));
}

/// Of a peer nothing is asked.
std::string of_bound(const Measurement& m) {
    if (m.bound == 0.0) return "–";
    return m.error <= m.bound ? share(m.error / m.bound) : "wrong";
}

std::vector<std::string> ladder_cells(const Measurement& m,
                                      const std::optional<Calibration>& ceiling) {
    // What has no floor ran elsewhere: the reference beside a GPU has a CPU's ceilings
    const bool comparable = ceiling && m.floor_ms;
    const double product = comparable ? ceiling->product_tflops.value_or(0.0) : 0.0;
    const double copy = comparable ? ceiling->copy_gb_per_s : 0.0;
    return {cell(spec_in_words(m.spec)),
            timing(*m.ms),
            rate(tflops(m), product),
            rate(gb_per_s(m), copy),
            m.floor_ms ? share(*m.floor_ms / m.ms->median) : "–",
            grouped(m.launches),
            grouped(m.host_waits),
            bytes_in_words(m.peak_device_bytes),
            of_bound(m)};
}

}  // namespace

std::string cell(const std::string& text) {
    // Signs that begin something in markdown, on GitHub or in Doxygen
    constexpr std::string_view kSigns = "|`[]*\\@#$";
    std::string safe;
    std::string_view rest = text;
    while (!rest.empty()) {
        const std::size_t length = readable_length(rest);
        if (kSigns.find(rest[0]) != std::string_view::npos) safe += '\\';
        safe += length == 0      ? "·"
                : rest[0] == '<' ? "&lt;"
                : rest[0] == '>' ? "&gt;"
                : rest[0] == '&' ? "&amp;"
                                 : rest.substr(0, length);
        rest.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return safe;
}

std::string ladder_table(const Run& run) {
    Table table({"part:", "pass:", "supplier:", "ms (p10 – p90)", "TFLOP/s (of product)",
                 "GB/s (of copy)", "of the floor", "launches", "host waits",
                 "peak memory", "error, of bound"});
    for (const Group& group : by_subject_and_pass(run.measurements))
        for (const Measurement* m : group) {
            if (!m->ms) continue;
            std::vector<std::string> cells = ladder_cells(*m, ceilings(run));
            cells.insert(cells.begin(), {m->subject, m->pass});
            table.add(cells);
        }
    return table.text();
}

std::string waterfall_table(const Run& run) {
    Table table({"step:", "ms (p10 – p90)", "to the step before:", "to the first:"});
    const Measurement *first = nullptr, *before = nullptr;
    for (const Measurement& m : run.waterfall) {
        if (!m.ms) continue;
        if (first == nullptr)
            table.add({cell(spec_in_words(m.spec)), timing(*m.ms), "", ""});
        else
            table.add({cell(what_changed(before->spec, m.spec)), timing(*m.ms),
                       times_faster(before->ms->median / m.ms->median),
                       times_faster(first->ms->median / m.ms->median)});
        if (first == nullptr) first = &m;
        before = &m;
    }
    return table.text();
}

std::string counts_table(const Run& run) {
    Table table({"part:", "pass:", "supplier:", "launches", "host waits",
                 "peak device memory", "least bytes", "error, of bound"});
    for (const Group& group : by_subject_and_pass(run.measurements))
        for (const Measurement* m : group)
            if (m->emulated)
                table.add({m->subject, m->pass, cell(spec_in_words(m->spec)),
                           grouped(m->launches), grouped(m->host_waits),
                           bytes_in_words(m->peak_device_bytes),
                           bytes_in_words(std::int64_t(m->bytes)), of_bound(*m)});
    return table.text();
}

std::string kept_table(const Run& run) {
    Table table({"supplier:", "bytes per token", "by formula", "what is kept:"});
    const std::int64_t T = run.workload.tokens;
    std::set<std::string> told;
    for (const Measurement& m : run.measurements)
        if (T > 0 && m.kept_bytes > 0 && told.insert(m.spec).second)
            table.add(
                {cell(spec_in_words(m.spec)), grouped(m.kept_bytes / T),
                 m.kept_formula.empty() ? "–" : grouped(m.kept_bytes_by_formula / T),
                 m.kept_formula.empty() ? "–" : m.kept_formula + " + m"});
    return told.empty() ? "" : table.text();
}

std::string calibration_table(const Run& run) {
    if (!run.before && !run.after) return "";
    Table table({"ceiling:", "before", "after", "drift"});
    const auto row = [&](const std::string& name, std::optional<double> before,
                         std::optional<double> after) {
        const auto shown = [](std::optional<double> value) {
            return value ? three_digits(*value) : std::string("–");
        };
        if (before || after)
            table.add({name, shown(before), shown(after),
                       before && after
                           ? fmt::format("{:+.1f} %", 100.0 * (*after / *before - 1.0))
                           : "–"});
    };
    const auto copy = [](const std::optional<Calibration>& c) {
        return c ? std::optional(c->copy_gb_per_s) : std::nullopt;
    };
    const auto product = [](const std::optional<Calibration>& c) {
        return c ? c->product_tflops : std::nullopt;
    };
    row("copy, GB/s read and written", copy(run.before), copy(run.after));
    row(cell(run.product) + ", TFLOP/s", product(run.before), product(run.after));
    return table.text();
}

std::string facts_table(const Result& result) {
    Table table({"fact:", "value:"});
    table.add({"device", cell(result.device)});
    table.add({"measured", cell(result.created)});
    table.add({"commit", cell(result.commit)});
    for (const auto& [name, value] : result.facts) table.add({cell(name), cell(value)});
    return table.text();
}

std::string stages_table(const Result& result) {
    Table table({"stage:", "status:", "seconds", "detail:"});
    for (const Stage& stage : result.stages)
        table.add({cell(stage.name), stage.status, fmt::format("{:.1f}", stage.seconds),
                   cell(stage.detail)});
    return table.text();
}

std::string disagreements_table(const Result& result) {
    Table table({"test:", "what the hardware did:"});
    for (const Disagreement& disagreement : result.disagreements)
        table.add({cell(disagreement.test), cell(disagreement.message)});
    const bool looked = result.kind == "gpu" && !result.stages.empty();
    if (result.disagreements.empty() && looked)
        return "Hardware and executor agreed in every test that ran.\n";
    return table.text();
}

std::string peers_table(const Result& result) {
    Table table({"peer:", "workload:", "pass:", "ms (p10 – p90)", "TFLOP/s", "ours, ms",
                 "peer ÷ ours"});
    for (const PeerTiming& peer : result.peers) {
        const Measurement* ours = nullptr;
        for (const Run& run : result.runs) {
            const Workload& w = run.workload;
            if (w.model != peer.model || w.routing != peer.routing ||
                w.tokens != peer.tokens)
                continue;
            for (const Measurement& m : run.measurements)
                if (m.ms && m.subject == "layer" && m.pass == peer.pass &&
                    (ours == nullptr || m.ms->median < ours->ms->median))
                    ours = &m;
        }
        Workload workload;
        workload.model = peer.model;
        workload.routing = peer.routing;
        workload.tokens = peer.tokens;
        table.add({cell(peer.peer), cell(workload_in_words(workload)), peer.pass,
                   timing(peer.ms), three_digits(peer.tflops),
                   ours ? fmt::format("{} ({})", three_digits(ours->ms->median),
                                      cell(spec_in_words(ours->spec)))
                        : "–",
                   ours ? three_digits(peer.ms.median / ours->ms->median) : "–"});
    }
    return table.text();
}

}  // namespace moe::bench
