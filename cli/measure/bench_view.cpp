#include "cli/measure/bench_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "bench/result_words.h"
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

void print_timed_row(const Run& run, const Measurement& m, const RateUnit& unit) {
    const bench::Calibration ceilings = bench::ceilings(run).value();
    std::string rate = "·", of_product = "·";
    if (m.flops > 0.0) rate = three_digits(unit.per_tflops * tflops(m));
    if (m.flops > 0.0 && ceilings.product_tflops && m.floor_ms)
        of_product = share_of(tflops(m), *ceilings.product_tflops);
    fmt::print("{:>10} {:>19} {:>8} {:>9} {:>8} {:>8} {:>9} {:>8}",
               three_digits(m.ms->median),
               three_digits(m.ms->p10) + " - " + three_digits(m.ms->p90), rate,
               of_product, three_digits(gb_per_s(m)),
               m.floor_ms ? share_of(gb_per_s(m), ceilings.copy_gb_per_s) : "·",
               m.floor_ms ? three_digits(*m.floor_ms) : "·",
               m.floor_ms ? share_of(*m.floor_ms, m.ms->median) : "·");
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
        fmt::print("  {:.1e} {:>8}\n", m.error, share_of(m.error, m.bound));
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
    const RateUnit unit = rate_unit(result);
    fmt::print("Ceilings {}; afterwards {}\n         product: {}\n",
               ceilings_in_words(*run.before, unit), ceilings_in_words(*run.after, unit),
               run.product);
}

void print_bench_table(const bench::Result& result, const Run& run) {
    const bool timed = any_timed(run), counted = any_counted(run);
    const RateUnit unit = rate_unit(result);
    fmt::print("\n{:<24}", "");
    if (timed)
        fmt::print("{:>10} {:>19} {:>8} {:>9} {:>8} {:>8} {:>9} {:>8}", "ms", "p10 - p90",
                   unit.name, "of prod.", "GB/s", "of copy", "floor ms", "reached");
    if (counted) fmt::print("{:>9} {:>6} {:>9}", "launches", "waits", "peak");
    fmt::print("  {}\n", "error, of bound");
    for (const bench::Group& group : bench::by_subject_and_pass(run.measurements)) {
        fmt::print("{}, {}\n", group.front()->subject, group.front()->pass);
        for (const Measurement* m : group) {
            fmt::print("  {:<22}", m->spec);
            if (timed && m->ms)
                print_timed_row(run, *m, unit);
            else if (timed)
                fmt::print("{:>10}{:76}", m->emulated ? "emulated" : "wrong", "");
            if (counted) print_counts(*m);
            print_error(*m);
        }
    }
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
