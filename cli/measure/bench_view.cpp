#include "cli/measure/bench_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "bench/result_words.h"
#include "cli/terminal.h"
#include "cli/words.h"

namespace moe {
namespace {

using bench::Measurement;
using bench::Run;

using bench::three_digits;

std::string share_of(double part, double whole) {
    return bench::share(part / whole);
}

bool any_timed(const Run& run) {
    return std::any_of(run.measurements.begin(), run.measurements.end(),
                       [](const Measurement& m) { return m.ms.has_value(); });
}
bool any_counted(const Run& run) {
    return std::any_of(run.measurements.begin(), run.measurements.end(),
                       [](const Measurement& m) { return m.launches > 0; });
}

bool any_kept(const Run& run) {
    return run.workload.tokens > 0 &&
           std::any_of(run.measurements.begin(), run.measurements.end(),
                       [](const Measurement& m) { return m.kept_bytes > 0; });
}

/// CPUs are told in GFLOP/s.
struct RateUnit {
    const char* name;
    double per_tflops;
};
RateUnit rate_unit(const bench::Result& result) {
    return result.kind == "gpu" ? RateUnit{"TFLOP/s", 1.0} : RateUnit{"GFLOP/s", 1e3};
}

std::string ceilings_in_words(const bench::Calibration& c, const RateUnit& unit) {
    return fmt::format(
        "copy {} GB/s, product {}", three_digits(c.copy_gb_per_s),
        c.product_tflops
            ? fmt::format("{} {}", three_digits(unit.per_tflops * *c.product_tflops),
                          unit.name)
            : "not measured");
}

/// A line of the header.
void print_wrapped(const std::string& line) {
    fmt::print("{}\n", wrapped(line, 9));
}

void print_trimmed(const std::string& line) {
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
}

/// A column of the table.
struct Column {
    const char* head;
    int width;
    enum Kind { timed, counted, kept, judged } kind;
    std::function<std::string(const Measurement&)> cell;
};

/// All columns that the run has something for.
std::vector<Column> make_columns(const Run& run, const RateUnit& unit) {
    std::vector<Column> columns;
    if (any_timed(run)) {
        const bench::Calibration ceilings = bench::ceilings(run).value();
        columns = {
            {"ms", 10, Column::timed,
             [](const Measurement& m) { return three_digits(m.ms->median); }},
            {"p10 - p90", 20, Column::timed,
             [](const Measurement& m) {
                 return three_digits(m.ms->p10) + " - " + three_digits(m.ms->p90);
             }},
            {unit.name, 9, Column::timed,
             [unit](const Measurement& m) {
                 return m.flops > 0.0 ? three_digits(unit.per_tflops * tflops(m)) : "·";
             }},
            {"of prod.", 10, Column::timed,
             [ceilings](const Measurement& m) {
                 return m.flops > 0.0 && ceilings.product_tflops && m.floor_ms
                            ? share_of(tflops(m), *ceilings.product_tflops)
                            : "·";
             }},
            {"GB/s", 9, Column::timed,
             [](const Measurement& m) { return three_digits(gb_per_s(m)); }},
            {"of copy", 9, Column::timed,
             [ceilings](const Measurement& m) {
                 return m.floor_ms ? share_of(gb_per_s(m), ceilings.copy_gb_per_s) : "·";
             }},
            {"floor ms", 10, Column::timed,
             [](const Measurement& m) {
                 return m.floor_ms ? three_digits(*m.floor_ms) : "·";
             }},
            {"reached", 9, Column::timed, [](const Measurement& m) {
                 return m.floor_ms ? share_of(*m.floor_ms, m.ms->median) : "·";
             }}};
    }
    if (any_counted(run)) {
        columns.push_back({"launches", 9, Column::counted, [](const Measurement& m) {
                               return fmt::to_string(m.launches);
                           }});
        columns.push_back({"waits", 7, Column::counted, [](const Measurement& m) {
                               return fmt::to_string(m.host_waits);
                           }});
        columns.push_back({"peak", 10, Column::counted, [](const Measurement& m) {
                               return bytes_in_words(m.peak_device_bytes);
                           }});
    }
    if (any_kept(run))
        columns.push_back({"kept/token", 12, Column::kept, [&run](const Measurement& m) {
                               return grouped(m.kept_bytes / run.workload.tokens);
                           }});
    columns.push_back({"error, of bound ", 18, Column::judged, [](const Measurement& m) {
                           return fmt::format("{:.1e} {:>8}", m.error,
                                              share_of(m.error, m.bound));
                       }});
    return columns;
}

/// Leaves out columns, the least telling first, until the table fits; a line says which.
std::string narrow(std::vector<Column>& columns, std::size_t name_width) {
    std::vector<std::string> order;
    for (const char* head :
         {"GB/s", "of copy", "p10 - p90", "peak", "kept/token", "of prod.", "waits",
          "launches", "floor ms", "GFLOP/s", "TFLOP/s"})
        for (const Column& column : columns)
            if (head == std::string(column.head)) order.push_back(head);
    const auto without = [&](std::size_t gone) {
        std::vector<Column> rest = columns;
        std::erase_if(rest, [&](const Column& column) {
            const auto end = order.begin() + std::ptrdiff_t(gone);
            return std::find(order.begin(), end, column.head) != end;
        });
        return rest;
    };
    const TableParts parts(order, [&](std::size_t gone) {
        std::size_t width = name_width;
        for (const Column& column : without(gone)) width += std::size_t(column.width);
        return width;
    });
    columns = without(parts.left_out());
    return parts.note("--json");
}

std::string cell(const Column& column, const Measurement& m, bool first) {
    switch (column.kind) {
        case Column::timed:
            if (m.ms) return column.cell(m);
            return !first ? "" : m.emulated ? "emulated" : "wrong";
        case Column::counted: return m.launches > 0 ? column.cell(m) : "·";
        case Column::kept: return m.kept_bytes > 0 ? column.cell(m) : "";
        case Column::judged: return m.bound > 0.0 ? column.cell(m) : "";  // not a peer's
    }
    return "";
}

}  // namespace

void print_bench_header(const bench::Result& result, const Run& run) {
    const bench::Workload& w = run.workload;
    print_wrapped(fmt::format("Layer    {}: H={} E={} K={} F={}{}", w.model, w.H, w.E,
                              w.K, w.F, w.Fs > 0 ? fmt::format(" Fs={}", w.Fs) : ""));
    print_wrapped(fmt::format(
        "Tokens   {} of N(0, 1), routing {}: {} rows, {} to {} for an expert, median {}",
        w.tokens, w.routing, w.rows, w.min_rows, w.max_rows, w.median_rows));
    fmt::print("Machine  {}\n",
               result.kind == "gpu" ? result.device : result.facts.at("CPU"));
    fmt::print("Held     against {}: every part, before it is timed\n", run.reference);
    if (!run.before) return;
    const RateUnit unit = rate_unit(result);
    print_wrapped(fmt::format("Ceilings {}; afterwards {}",
                              ceilings_in_words(*run.before, unit),
                              ceilings_in_words(*run.after, unit)));
    fmt::print("         product: {}\n", run.product);
}

void print_bench_table(const bench::Result& result, const Run& run) {
    constexpr std::size_t kNameWidth = 24;
    std::vector<Column> columns = make_columns(run, rate_unit(result));
    const std::string note = narrow(columns, kNameWidth);
    std::string line(kNameWidth, ' ');
    for (const Column& column : columns)
        line += fmt::format("{:>{}}", column.head, column.width);
    fmt::print("\n");
    print_trimmed(line);
    for (const bench::Group& group : bench::by_subject_and_pass(run.measurements)) {
        fmt::print("{}, {}\n", group.front()->subject, group.front()->pass);
        for (const Measurement* m : group) {
            line = fmt::format("  {:<{}}", m->spec, kNameWidth - 2);
            for (const Column& column : columns)
                line +=
                    fmt::format("{:>{}}", cell(column, *m, &column == &columns.front()),
                                column.width);
            print_trimmed(line);
        }
    }
    fmt::print("{}", note);
}

void print_bars(const Run& run) {
    Run compared = run;  // one bar alone says nothing
    compared.measurements.clear();
    for (const bench::Group& group : bench::by_subject_and_pass(run.measurements)) {
        std::vector<Measurement> timed;
        for (const Measurement* m : group)
            if (m->ms) timed.push_back(*m);
        if (timed.size() < 2) continue;
        compared.measurements.insert(compared.measurements.end(), timed.begin(),
                                     timed.end());
    }
    if (any_timed(compared)) fmt::print("\n{}", bench::bar_chart(compared));
}

void print_waterfall(const Run& run) {
    const auto timed =
        std::count_if(run.waterfall.begin(), run.waterfall.end(),
                      [](const Measurement& m) { return m.ms.has_value(); });
    if (timed < 2) return;
    fmt::print("\nThe layer, forward and backward, from one supplier to the next\n");
    const Measurement* previous = nullptr;
    for (const Measurement& m : run.waterfall) {
        if (!m.ms) continue;
        fmt::print("  {:>10} ms  {:<8} {}\n", three_digits(m.ms->median),
                   previous == nullptr
                       ? ""
                       : "x " + three_digits(previous->ms->median / m.ms->median),
                   m.spec);
        previous = &m;
    }
}

}  // namespace moe
