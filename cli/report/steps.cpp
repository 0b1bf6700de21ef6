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

double sum_of_steps(const Comparison& c, const ColumnOutcome& column) {
    double sum = 0.0;
    for (int n = 1; n <= kNumSteps; ++n)
        if (const auto step = static_cast<Step>(n); is_on(c, step))
            sum += column.at(step).seconds;
    return std::max(sum, 1e-30);
}

/// The share of its column's time that a step takes; 0 of what is off or has no times.
double share_of_time(const Comparison& c, const ColumnOutcome& column, Step step) {
    return is_on(c, step) ? column.at(step).seconds / sum_of_steps(c, column) : 0.0;
}

/// The largest share of a column's time that a step takes: what a full bar means.
double largest_share(const Comparison& c) {
    double largest = 1e-30;
    for (const ColumnOutcome& column : c.columns)
        for (int n = 1; n <= kNumSteps; ++n)
            largest = std::max(largest, share_of_time(c, column, static_cast<Step>(n)));
    return largest;
}

bool has_time(const ColumnOutcome& column) {
    return !column.emulated;
}
bool has_error(const Comparison& c, const ColumnOutcome& column) {
    return &column != &c.columns.front();
}

/// A column's label, which may go on in the next line after each of its parts.
std::string breakable(const std::string& label) {
    std::string html = escape(label);
    const std::string here = "<wbr>";
    for (std::size_t at = 0; (at = html.find_first_of(":,=", at)) != std::string::npos;
         at += here.size())
        html.insert(++at, here);
    return html;
}

std::string time_cell(const Comparison& c, const ColumnOutcome& column, Step step,
                      double full_share) {
    if (column.at(step).seconds == 0.0) return column.time_of(step);
    const double share = share_of_time(c, column, step);
    return fmt::format("{:.2f}<small>{} {}</small>", 1e3 * column.at(step).seconds,
                       draw_share(step, share / full_share), percent(share));
}

std::string error_cell(const StepOutcome& outcome) {
    const std::string integers =
        outcome.integers_equal ? "" : "<small class='bad'>integers differ</small>";
    const std::string mark = outcome.beside ? "°" : "";
    if (outcome.error == 0.0) return "0" + mark + integers;
    return fmt::format("{:.1e}{}<small>{}</small>{}", outcome.error, mark,
                       percent(outcome.error / outcome.bound), integers);
}

/// The cells of one column; a step that is off has them empty.
std::string cells(const Comparison& c, const ColumnOutcome& column, Step step,
                  double full_share) {
    const bool on = is_on(c, step);
    const StepOutcome& outcome = column.at(step);
    std::string row;
    if (has_time(column))
        row += fmt::format("<td class='opens'>{}</td>",
                           on ? time_cell(c, column, step, full_share) : "");
    if (has_error(c, column))
        row +=
            fmt::format("<td class='{}{}'>{}</td>", has_time(column) ? "" : "opens",
                        !on || outcome.ok() ? "" : " bad", on ? error_cell(outcome) : "");
    return row;
}

/// Of the last column, which is the least precise one.
DType narrowest(const Comparison& c) {
    return c.columns.back().spec.experts.dtype;
}

std::string step_row(const Comparison& c, Step step, double full_share) {
    const Floor floor = c.floors().step(step);
    std::string row =
        fmt::format("<tr{}><td>{} {}<small class='indent'>{}</small></td><td>{}</td>",
                    is_on(c, step) ? "" : " class='off'", badge(step), title(step),
                    kStepMeanings[static_cast<std::size_t>(step) - 1],
                    is_on(c, step) ? fmt::format("{}<small>{}</small>", floor.formula,
                                                 bytes_in_words(floor.total_bytes()))
                                   : "off");
    for (const ColumnOutcome& column : c.columns)
        row += cells(c, column, step, full_share);
    return row + "</tr>\n";
}

std::string steps_table(const Comparison& c) {
    std::string labels, heads, rows;
    std::string sum = "<tr class='sum'><td>forward and backward</td><td></td>";
    for (const ColumnOutcome& column : c.columns) {
        const bool timed = has_time(column), judged = has_error(c, column);
        labels +=
            fmt::format("<th class='column opens' colspan='{}'>{}<small>{}</small></th>",
                        int(timed) + int(judged), breakable(column.label),
                        !judged ? "what the others are held against"
                        : timed ? ""
                                : "emulated on this CPU");
        if (timed) heads += "<th class='opens'>ms<small>share of time</small></th>";
        if (judged)
            heads += fmt::format("<th class='{}'>error<small>of bound</small></th>",
                                 timed ? "" : "opens");
        if (timed)
            sum += fmt::format("<td class='opens'>{:.2f}</td>", 1e3 * column.seconds);
        if (judged) sum += timed ? "<td></td>" : "<td class='opens'></td>";
    }
    const double full_share = largest_share(c);
    for (int n = 1; n <= kNumSteps; ++n) {
        if (n == 1) rows += "<tr class='part'><td>Forward</td></tr>\n";
        if (n == 11) rows += "<tr class='part'><td>Backward</td></tr>\n";
        rows += step_row(c, static_cast<Step>(n), full_share);
    }
    return fmt::format(
        "<div class='wide'><table><tr><th rowspan='2'>step</th>"
        "<th rowspan='2'>elements<small>bytes in {}</small></th>{}</tr>\n<tr>{}</tr>\n"
        "{}{}</tr></table></div>\n",
        to_string(narrowest(c)), labels, heads, rows, sum);
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
        longest = std::max({longest, column.seconds, sum_of_steps(c, column)});
    std::string lines;
    for (const ColumnOutcome& column : c.columns)
        if (!column.emulated)
            lines +=
                fmt::format("<p class='soft'>{}: {:.1f} ms</p>\n{}", escape(column.label),
                            1e3 * column.seconds, draw_time_line(c, column, longest));
    const std::string key = component_key(Step::gating, "router") +
                            component_key(Step::dispatch, "dispatcher") +
                            component_key(Step::fc1, "experts") +
                            component_key(Step::shared_experts, "shared experts");
    return fmt::format(
        R"(<h2>Step by step</h2>
<p>Every column runs the same layer on the same tokens, in another implementation or
precision. Step n is undone by step 21 − n. <b>Elements</b> are the numbers that every
correct implementation must read and write at least once, m what says where they go (maps,
ids, row numbers and counts). Below them you see their bytes with activations and weights
in {}, logits and probabilities in fp32. <b>Errors</b> are relative to fp64 (Frobenius norm); below them you see which share
of the allowed error they take. 0 means exactly equal, as integers must be: maps, counts
and choices. A step with ° holds a value that no fused kernel writes; an unfused one made it
beside the result.</p>
<p>Times are medians over the timed runs on this machine. <b>Emulated</b> columns are GPU
kernels that ran on its CPU, thread by thread: their values count, but their times would
say nothing about a GPU, so there are none. A full bar is {} of a
column’s time.</p>
<p>{}</p>
{}<h3>Where the time goes</h3>
<p>All lines have one scale. The tall mark is where the backward begins.</p>
{})",
        to_string(narrowest(c)), percent(largest_share(c)), key, steps_table(c), lines);
}

}  // namespace moe
