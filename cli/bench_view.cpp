#include "cli/bench_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/words.h"

namespace moe {
namespace {

using bench::Measurement;
using bench::Run;

/// Three digits, whatever the size: "0.0123", "1.23", "123".
std::string three_digits(double value) {
    const int digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : value >= 0.9995 ? 2 : 4;
    return fmt::format("{:.{}f}", value, digits);
}

std::string share(double part, double whole) {
    return fmt::format("{:.1f} %", 100.0 * part / whole);
}

bool any_timed(const Run& run) {
    return std::any_of(run.measurements.begin(), run.measurements.end(),
                       [](const Measurement& m) { return m.ms.has_value(); });
}
bool any_counted(const Run& run) {
    return std::any_of(run.measurements.begin(), run.measurements.end(),
                       [](const Measurement& m) { return m.launches > 0; });
}

std::string ceilings_in_words(const bench::Calibration& c) {
    return fmt::format("copy {} GB/s, product {}", three_digits(c.copy_gb_per_s),
                       c.product_tflops ? three_digits(*c.product_tflops) + " TFLOP/s"
                                        : std::string("not measured"));
}

void print_timed_row(const Run& run, const Measurement& m) {
    const bench::Calibration ceilings = best_of(*run.before, *run.after);
    std::string rate = "·", of_product = "·";
    if (m.flops > 0.0) rate = three_digits(tflops(m));
    if (m.flops > 0.0 && ceilings.product_tflops && m.floor_ms)
        of_product = share(tflops(m), *ceilings.product_tflops);
    fmt::print("{:>10} {:>19} {:>8} {:>9} {:>8} {:>8} {:>9} {:>8}",
               three_digits(m.ms->median),
               three_digits(m.ms->p10) + " - " + three_digits(m.ms->p90), rate,
               of_product, three_digits(gb_per_s(m)),
               m.floor_ms ? share(gb_per_s(m), ceilings.copy_gb_per_s) : "·",
               m.floor_ms ? three_digits(*m.floor_ms) : "·",
               m.floor_ms ? share(*m.floor_ms, m.ms->median) : "·");
}

void print_counts(const Measurement& m) {
    if (m.launches == 0)
        fmt::print("{:>9} {:>6} {:>9}", "·", "·", "·");
    else
        fmt::print("{:>9} {:>6} {:>9}", m.launches, m.host_waits,
                   bytes_in_words(m.peak_device_bytes));
}

void print_error(const Measurement& m) {
    if (m.bound == 0.0)
        fmt::print("\n");  // a peer; nothing is asked of it
    else
        fmt::print("  {:.1e} {:>8}\n", m.error, share(m.error, m.bound));
}

}  // namespace

void print_bench_header(const bench::Result& result, const Run& run) {
    const bench::Workload& w = run.workload;
    fmt::print("Layer    {}: H={} E={} K={} F={}{}\n", w.model, w.H, w.E, w.K, w.F,
               w.Fs > 0 ? fmt::format(" Fs={}", w.Fs) : "");
    fmt::print(
        "Tokens   {} of N(0, 1), routing {}: {} rows, {} to {} for an expert, "
        "median {}\n",
        w.tokens, w.routing, w.rows, w.min_rows, w.max_rows, w.median_rows);
    fmt::print("Machine  {}\n",
               result.kind == "gpu" ? result.device : result.facts.at("CPU"));
    fmt::print("Held     against {}: every part, before it is timed\n", run.reference);
    if (!run.before) return;
    fmt::print("Ceilings {}; afterwards {}\n         product: {}\n",
               ceilings_in_words(*run.before), ceilings_in_words(*run.after),
               run.product);
}

void print_bench_table(const Run& run) {
    const bool timed = any_timed(run), counted = any_counted(run);
    fmt::print("\n{:<31}", "");
    if (timed)
        fmt::print("{:>10} {:>19} {:>8} {:>9} {:>8} {:>8} {:>9} {:>8}", "ms", "p10 - p90",
                   "TFLOP/s", "of prod.", "GB/s", "of copy", "floor ms", "reached");
    if (counted) fmt::print("{:>9} {:>6} {:>9}", "launches", "waits", "peak");
    fmt::print("  {}\n", "error, of bound");
    std::string group;
    for (const Measurement& m : run.measurements) {
        if (const std::string here = m.subject + ", " + m.pass; here != group)
            fmt::print("{}\n", group = here);
        fmt::print("  {:<29}", m.spec);
        if (timed && m.ms)
            print_timed_row(run, m);
        else if (timed)
            fmt::print("{:>10}{:76}", m.emulated ? "emulated" : "wrong", "");
        if (counted) print_counts(m);
        print_error(m);
    }
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
