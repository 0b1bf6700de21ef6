// verify_view.cpp: a golden case's checks, for people and as JSON.

#include "cli/golden/verify_view.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/compare/comparison.h"
#include "cli/terminal.h"

namespace moe {
namespace {

std::string in_words(BoundFrom origin) {
    switch (origin) {
        case BoundFrom::source_error: return "1.25 x the source's own error";
        case BoundFrom::rounding: return "what rounding does here";
        default: return "as agreed";
    }
}

/// Where the line has no room for the bound, its share alone.
void print_check(const TensorCheck& check) {
    const bool narrow = terminal_width() < 92;
    std::string line =
        fmt::format("    {} {:<{}} ", check.ok ? "✓" : "✗", check.name, narrow ? 44 : 42);
    if (check.bound == 0.0) {
        line += check.ok ? "exactly equal" : check.detail;
    } else {
        const double share = 100.0 * check.error / check.bound;
        line += narrow ? fmt::format("{:.1e} {:5.1f} % of bound  ", check.error, share)
                       : fmt::format("error {:<9.2e} bound {:<9.2e} {:5.1f} %  ",
                                     check.error, check.bound, share);
        if (check.bound_from != BoundFrom::agreement)
            line += fmt::format("bound: {}  ", in_words(check.bound_from));
        line += check.detail;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", wrapped(line, 8));
}

}  // namespace

void print_result(const std::string& title, const CaseResult& result) {
    fmt::print("{}\n", wrapped(fmt::format("{} {}  {}{}", result.ok ? "✓" : "✗", title,
                                           to_string(result.spec),
                                           result.spec.is_emulated() ? ", emulated" : ""),
                               4));
    if (const auto step = result.first_deviation())
        fmt::print("    {}\n", begins_at(*step));
    if (!result.hint.empty()) fmt::print("{}\n", wrapped("    " + result.hint, 8));
    for (const TensorCheck& check : result.checks) print_check(check);
}

void print_json(const CaseResult& result, const DispatcherCase& subject,
                bool chose_dispatcher) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const TensorCheck& check : result.checks) {
        nlohmann::ordered_json entry = {{"name", check.name},
                                        {"ok", check.ok},
                                        {"error", check.error},
                                        {"bound", check.bound}};
        if (check.bound > 0.0) entry["bound_from"] = in_words(check.bound_from);
        if (!check.ok) entry["detail"] = check.detail;
        tensors.push_back(entry);
    }
    nlohmann::ordered_json object = {{"case", result.case_name}};
    if (chose_dispatcher) {
        object["dispatcher"] = subject.golden.config.moe_token_dispatcher_type;
        object["not_compared"] = subject.left_out;
    }
    if (const ComponentSpec& all = result.spec.experts;
        result.spec == ModuleSpec::uniform(all)) {
        object["tier"] = all.tier;
        object["dtype"] = to_string(all.dtype);
    } else {
        object["spec"] = to_string(result.spec);
    }
    object["emulated"] = result.spec.is_emulated();
    object["training"] = subject.golden.training;
    object["micro_batches"] = subject.golden.ranks[0].micro_batches().size();
    object["ok"] = result.ok;
    if (!result.hint.empty()) object["hint"] = result.hint;
    object["tensors"] = tensors;
    fmt::print("{}\n", object.dump());
}

}  // namespace moe
