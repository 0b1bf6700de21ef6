#include "cli/compare/table.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/terminal.h"
#include "cli/words.h"

namespace moe {
namespace {

// What goes first where the terminal is too narrow
constexpr std::size_t kElements = 0, kShares = 1, kTimes = 2;

/// Which columns there are and how wide they are, without the first parts.
class Layout {
  public:
    Layout(const Comparison& c, std::size_t left_out)
        : c_(&c),
          elements_(left_out <= kElements),
          shares_(left_out <= kShares),
          times_(left_out <= kTimes) {
        for (int n = 1; n <= kNumSteps; ++n)
            elements_width_ =
                std::max(elements_width_,
                         columns_of(c.floors().step(static_cast<Step>(n)).formula));
    }

    bool has_elements() const { return elements_; }
    bool has_shares() const { return shares_; }
    /// Of the longest formula.
    std::size_t elements_width() const { return elements_width_; }
    /// Of elements and bytes together.
    std::size_t numbers_width() const { return elements_ ? elements_width_ + 14 : 0; }
    /// What is emulated has no time, …
    bool has_time(const ColumnOutcome& column) const {
        return times_ && !column.emulated;
    }
    /// … and the fp64 reference no error.
    bool has_error(const ColumnOutcome& column) const {
        return &column != &c_->columns.front();
    }
    std::size_t step_width() const { return elements_ ? 28 : 25; }
    std::size_t width(const ColumnOutcome& column) const {
        const bool time = has_time(column), error = has_error(column);
        if (!time && !error) return 0;
        const std::size_t errors = shares_ ? 20 : time ? 7 : 10;
        const std::size_t cells = error ? (time ? 11 : 0) + errors : 9;
        return std::max(cells, shows_tier_alone(column) ? tier_head(column).size() : 0);
    }
    std::size_t total_width() const {
        std::size_t total = step_width() + numbers_width();
        for (const ColumnOutcome& column : c_->columns)
            if (width(column) > 0) total += 2 + width(column);
        return total;
    }

    /// A tier's name stands over its first column, and reaches over the next ones of the
    /// same tier where columns are narrow.
    std::string shown_tier(const ColumnOutcome& column) const {
        const bool again = &column != &c_->columns.front() &&
                           tier_head((&column)[-1]) == tier_head(column) &&
                           width((&column)[-1]) > 0;
        return again && !shares_ ? "" : tier_head(column);
    }
    /// The tier, or "--spec" for a mix.
    static std::string tier_head(const ColumnOutcome& column) {
        return is_mix(column) ? "--spec" : column.spec.experts.tier;
    }
    std::string dtype_head(const ColumnOutcome& column) const {
        const std::string dtype =
            is_mix(column) ? "mixed" : to_string(column.spec.experts.dtype);
        if (!has_error(column)) return dtype;
        return fmt::format("{:<{}}error{}", dtype,
                           has_time(column) ? 11 : dtype.size() + 1,
                           shares_ ? ", of bound" : "");
    }

  private:
    static bool is_mix(const ColumnOutcome& column) {
        return column.spec.dispatcher != column.spec.experts;
    }
    bool shows_tier_alone(const ColumnOutcome& column) const {
        const bool last = &column == &c_->columns.back();
        return shares_ || last || tier_head((&column)[1]) != tier_head(column);
    }

    const Comparison* c_;
    bool elements_, shares_, times_;
    std::size_t elements_width_ = 8;
};

/// A line: its beginning, and a cell for every column that is shown.
template <typename Cell>
void print_line(const Comparison& c, const Layout& layout, std::string line, Cell cell) {
    for (const ColumnOutcome& column : c.columns)
        if (const std::size_t width = layout.width(column); width > 0)
            line += fmt::format("  {:<{}}", cell(column), width);
    fmt::print("{}\n", line.substr(0, line.find_last_not_of(' ') + 1));
}

void print_heads(const Comparison& c, const Layout& layout, DType narrowest) {
    fmt::print("\n");
    print_line(c, layout, std::string(layout.step_width() + layout.numbers_width(), ' '),
               [&](const ColumnOutcome& column) { return layout.shown_tier(column); });
    std::string line = fmt::format("{:<{}}", "step", layout.step_width());
    if (layout.has_elements())
        line += fmt::format("{:>{}}{:>14}", "elements", layout.elements_width(),
                            "bytes in " + to_string(narrowest));
    print_line(c, layout, line,
               [&](const ColumnOutcome& column) { return layout.dtype_head(column); });
}

/// Some of the step's values were made for the comparison alone.
constexpr const char* kBesideMark = "°";

bool any_beside(const Comparison& c) {
    return std::any_of(c.columns.begin(), c.columns.end(), [](const auto& column) {
        return std::any_of(column.steps.begin(), column.steps.end(),
                           [](const StepOutcome& step) { return step.beside; });
    });
}

std::string error_cell(const StepOutcome& outcome, bool with_share) {
    if (!outcome.integers_equal) return with_share ? "integers differ" : "differs";
    const std::string mark = outcome.beside && with_share ? kBesideMark : "";
    if (outcome.error == 0.0) return "equal" + mark;
    const std::string error = fmt::format("{:.1e}", outcome.error);
    return with_share ? fmt::format("{}  {:4.1f} %{}", error,
                                    100.0 * outcome.error / outcome.bound, mark)
                      : error;
}

std::string cells(const Layout& layout, const ColumnOutcome& column,
                  const std::string& time, const std::string& error) {
    if (!layout.has_time(column)) return error;
    return fmt::format("{:>9}{}", time,
                       layout.has_error(column) ? "  " + error : std::string());
}

}  // namespace

void print_steps(const Comparison& c, const std::string& report) {
    const DType narrowest = c.columns.back().spec.experts.dtype;
    const TableParts parts(
        {"elements and bytes", "errors as shares of their bounds", "times"},
        [&](std::size_t left_out) { return Layout(c, left_out).total_width(); });
    const Layout layout(c, parts.left_out());

    print_heads(c, layout, narrowest);
    for (int number = 1; number <= kNumSteps; ++number) {
        const auto step = static_cast<Step>(number);
        const Floor floor = c.floors().step(step);
        std::string line =
            fmt::format("{} {:<{}}", circled(step), title(step), layout.step_width() - 2);
        if (floor.is_off()) {
            fmt::print("{}{:>{}}\n", line, "off",
                       layout.has_elements() ? layout.elements_width() : 11);
            continue;
        }
        if (layout.has_elements())
            line += fmt::format("{:>{}}{:>14}", floor.formula, layout.elements_width(),
                                bytes_in_words(floor.total_bytes()));
        print_line(c, layout, line, [&](const ColumnOutcome& column) {
            const StepOutcome& outcome = column.at(step);
            return cells(layout, column, column.time_of(step),
                         error_cell(outcome, layout.has_shares()));
        });
    }
    const std::size_t before = layout.step_width() + layout.numbers_width();
    print_line(c, layout, fmt::format("{:<{}}", "  forward + backward", before),
               [&](const ColumnOutcome& column) {
                   return cells(layout, column,
                                fmt::format("{:.1f} ms", 1e3 * column.seconds),
                                column.emulated ? "emulated" : "");
               });
    if (layout.has_shares() && any_beside(c))
        fmt::print("{}\n",
                   wrapped(fmt::format("{} holds a value that no fused kernel writes; an "
                                       "unfused one made it beside the result",
                                       kBesideMark),
                           2));
    fmt::print("{}", parts.note(report == "none" ? "" : report));
}

}  // namespace moe
