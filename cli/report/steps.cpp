// report_steps.cpp: the report's table of steps, with errors and times.

#include "cli/report/steps.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/report/pictures.h"
#include "cli/report/style.h"
#include "cli/report/svg.h"
#include "cli/words.h"

namespace moe {
namespace {

double sum_of_steps(const ColumnOutcome& column) {
    double sum = 0.0;
    for (const StepOutcome& step : column.steps) sum += step.seconds;
    return std::max(sum, 1e-30);
}

/// The largest share of a column's time that a step takes: what a full bar means.
double largest_share(const Comparison& c) {
    double largest = 1e-30;
    for (const ColumnOutcome& column : c.columns)
        for (const StepOutcome& step : column.steps)
            largest = std::max(largest, step.seconds / sum_of_steps(column));
    return largest;
}

/// What an emulated column has instead: bytes, and no time.
std::string bytes_cell(const Comparison& c, const ColumnOutcome& column, Step step) {
    const StepCost cost = step_cost(step, c.config, c.sizes, column.spec.experts.dtype);
    return fmt::format("<td class='opens'>{}</td>",
                       cost.formula.empty() ? "" : bytes_in_words(cost.bytes));
}

std::string time_cells(const Comparison& c, const ColumnOutcome& column, Step step,
                       double full_share) {
    const StepCost cost = step_cost(step, c.config, c.sizes, column.spec.experts.dtype);
    if (cost.formula.empty()) return "<td class='opens'></td><td></td>";
    const double seconds = column.at(step).seconds,
                 share = seconds / sum_of_steps(column);
    return fmt::format(
        "<td class='opens'>{:.2f}<small>{}</small></td><td>{}<small>{}</small></td>",
        1e3 * seconds, bytes_in_words(cost.bytes), draw_share(step, share / full_share),
        percent(share));
}

std::string error_cell(Step step, const StepOutcome& outcome) {
    if (outcome.bound == 0.0 && outcome.ok()) return "<td class='soft'>–</td>";
    const bool has_integers =
        step == Step::routing || step == Step::token_dropping || step == Step::dispatch;
    const std::string integers = !outcome.integers_equal
                                     ? "<small class='bad'>integers differ</small>"
                                 : has_integers ? "<small>integers: exact</small>"
                                                : "";
    const std::string error =
        outcome.error == 0.0
            ? "0"
            : fmt::format("{:.1e}<small>{} of bound</small>", outcome.error,
                          percent(outcome.error / outcome.bound));
    return fmt::format("<td class='{}'>{}{}</td>", outcome.ok() ? "" : "bad", error,
                       integers);
}

std::string step_row(const Comparison& c, Step step, double full_share) {
    const StepCost cost = step_cost(step, c.config, c.sizes, DType::f64);
    std::string row = fmt::format(
        "<tr><td>{} {}<small class='indent'>{}</small></td><td>{}</td>", badge(step),
        title(step), kStepMeanings[static_cast<std::size_t>(step) - 1],
        cost.formula.empty() ? "<span class='soft'>off</span>" : cost.formula);
    for (const ColumnOutcome& column : c.columns) {
        row += column.emulated ? bytes_cell(c, column, step)
                               : time_cells(c, column, step, full_share);
        if (&column != &c.columns.front()) row += error_cell(step, column.at(step));
    }
    return row + "</tr>\n";
}

std::string steps_table(const Comparison& c) {
    std::string labels, heads, rows;
    std::string sum = "<tr class='sum'><td>forward and backward</td><td></td>";
    for (const ColumnOutcome& column : c.columns) {
        const bool first = &column == &c.columns.front();
        labels +=
            fmt::format("<th class='column opens' colspan='{}'>{}<small>{}</small></th>",
                        first || column.emulated ? 2 : 3, escape(column.label),
                        first             ? "what the others are held against"
                        : column.emulated ? "emulated on this CPU"
                                          : "");
        heads += column.emulated ? "<th class='opens'>bytes</th>"
                                 : "<th class='opens'>ms<small>bytes</small></th>"
                                   "<th>share of time</th>";
        heads += first ? "" : "<th>error</th>";
        sum += column.emulated ? std::string("<td class='opens soft'>–</td>")
                               : fmt::format("<td class='opens'>{:.2f}</td><td></td>",
                                             1e3 * column.seconds);
        sum += first ? "" : "<td></td>";
    }
    const double full_share = largest_share(c);
    for (int n = 1; n <= kNumSteps; ++n) {
        if (n == 1) rows += "<tr class='part'><td>Forward</td></tr>\n";
        if (n == 11) rows += "<tr class='part'><td>Backward</td></tr>\n";
        rows += step_row(c, static_cast<Step>(n), full_share);
    }
    return fmt::format(
        "<div class='wide'><table><tr><th rowspan='2'>step</th>"
        "<th rowspan='2'>elements</th>{}</tr>\n<tr>{}</tr>\n{}{}</tr></table></div>\n",
        labels, heads, rows, sum);
}

std::string component_key(Step step, const std::string& name) {
    return fmt::format(
        "<span class='key'><svg viewBox='0 0 12 12'><rect class='{}' width='12' "
        "height='12'/></svg>{}</span>",
        component_hue(step), name);
}

}  // namespace

std::string steps_section(const Comparison& c) {
    double longest = 0.0;
    for (const ColumnOutcome& column : c.columns)
        longest = std::max({longest, column.seconds, sum_of_steps(column)});
    std::string lines;
    for (const ColumnOutcome& column : c.columns)
        if (!column.emulated)
            lines +=
                fmt::format("<p class='soft'>{}: {:.1f} ms</p>\n{}", escape(column.label),
                            1e3 * column.seconds, draw_time_line(column, longest));
    const std::string key = component_key(Step::gating, "router") +
                            component_key(Step::dispatch, "dispatcher") +
                            component_key(Step::fc1, "experts") +
                            component_key(Step::shared_experts, "shared experts");
    return fmt::format(
        R"(<h2>Step by step</h2>
<p>Every column runs the same layer on the same tokens, in another implementation or
precision. Step n is undone by step 21 − n. <b>Elements</b> are the numbers that every
correct implementation must read and write at least once; <b>bytes</b> are these in the
column’s precision. <b>Errors</b> are relative to fp64 (Frobenius norm); below them you
see which share of the allowed error they take. 0 means exactly equal.</p>
<p>Times are medians over the timed runs on this machine. <b>Emulated</b> columns are GPU
kernels that ran on its CPU, thread by thread: their values count, but their times would
say nothing about a GPU, so there are none. A full bar is {} of a
column’s time.</p>
<p>{}</p>
{}<h3>Where the time goes</h3>
<p>All lines have one scale. The tall mark is where the backward begins.</p>
{})",
        percent(largest_share(c)), key, steps_table(c), lines);
}

}  // namespace moe
