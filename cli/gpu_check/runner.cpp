// runner.cpp: each stage gets its time, and a record, whatever becomes of it.

#include "cli/gpu_check/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/commands.h"
#include "cli/gpu_check/progress.h"
#include "core/error.h"

namespace moe::gpu_check {
namespace {

using nlohmann::ordered_json;

constexpr double kLeastSeconds = 3.0;  // with less, a stage does not start
constexpr double kKeptForNext = 0.4;   // of a stage's budget, for what may come next
constexpr double kLeastForNext = 1.0;  // seconds

const char* status_of(Finding::Verdict verdict) {
    return verdict == Finding::Verdict::passed    ? "passed"
           : verdict == Finding::Verdict::skipped ? "skipped"
                                                  : "failed";
}

/// "" or ".memcheck", within the names of files.
std::string suffix(const Program& program) {
    return program.label.empty() ? "" : "." + program.label;
}

ordered_json to_json(const Trace& trace) {
    return {{"label", trace.program.label},    {"arguments", trace.program.arguments},
            {"output", trace.program.output},  {"log", trace.program.log},
            {"ended", in_words(trace.ending)}, {"seconds", trace.ending.seconds}};
}

/// Runs programs of one stage, within its budget.
class ProgramRunner {
  public:
    ProgramRunner(const Setting& setting, Progress& progress)
        : setting_(setting), progress_(progress) {}

    double seconds_left() const { return setting_.budget - seconds_since(start_); }

    void run(Program program, double budget) {
        program.log = setting_.stem + suffix(program) + ".log";
        const double before = seconds_since(start_);
        const auto tick = [&](double seconds) {
            progress_.tick(program.label, before + seconds);
        };
        traces.push_back({program, run_child(program, std::max(0.0, budget), tick)});
    }

    std::vector<Trace> traces;

  private:
    const Setting& setting_;
    Progress& progress_;
    Clock::time_point start_ = Clock::now();
};

/// What was planned, each with its share of the time that is left; then what that calls
/// for.
std::vector<Trace> run_programs(const Stage& stage, const Setting& setting,
                                const std::vector<Program>& programs,
                                Progress& progress) {
    ProgramRunner runner(setting, progress);
    const double kept = stage.next ? kKeptForNext * setting.budget : 0.0;
    for (std::size_t i = 0; i < programs.size() && !interrupted(); ++i)
        runner.run(programs[i],
                   (runner.seconds_left() - kept) / double(programs.size() - i));
    while (stage.next && !interrupted() && runner.seconds_left() > kLeastForNext) {
        const std::optional<Program> program = stage.next(setting, runner.traces);
        if (!program) break;
        runner.run(*program, runner.seconds_left());
    }
    return runner.traces;
}

/// Where a program was stopped, that is the stage's status, whatever the others found.
void settle(Record& record, const Finding& finding, const std::vector<Trace>& traces) {
    record.stage.status = status_of(finding.verdict);
    record.stage.detail = one_line(finding.detail);
    record.details = finding.details;
    record.result = finding.result;
    for (const Trace& trace : traces) {
        if (trace.ending.kind == Ending::Kind::interrupted) {
            record.stage.status = "failed";
            record.stage.detail = "interrupted; " + record.stage.detail;
        } else if (trace.ending.kind == Ending::Kind::over_budget) {
            record.stage.status = "over budget";
        }
    }
    if (record.result.is_null()) record.result = ordered_json::object();
    check_contribution(record.result, record.stage.name);
}

void run_stage(const Stage& stage, const Setting& setting, Record& record,
               Progress& progress) {
    const Plan plan = stage.plan(setting);
    if (plan.programs.empty()) {
        settle(record, {.verdict = Finding::Verdict::skipped, .detail = plan.skipped},
               {});
        return;
    }
    const std::vector<Trace> traces =
        run_programs(stage, setting, plan.programs, progress);
    for (const Trace& trace : traces) record.programs.push_back(to_json(trace));
    if (traces.empty())  // the user was faster
        settle(record, {.verdict = Finding::Verdict::failed, .detail = "interrupted"},
               {});
    else
        settle(record, stage.judge(setting, traces), traces);
}

/// Runs the stage, or says why it cannot run.
void run_or_refuse(const Stage& stage, const Request& request, const Setting& setting,
                   Record& record, Progress& progress) {
    if (stage.needs_device && !request.unfit.empty()) {
        record.stage.status = "failed";
        record.stage.detail = one_line(request.unfit);
        return;
    }
    if (setting.budget < std::min(kLeastSeconds, stage.budget)) {
        record.stage.status = "over budget";
        record.stage.detail = fmt::format("did not start: {:.0f} s left of {:.0f} s",
                                          std::max(0.0, setting.budget), request.budget);
        return;
    }
    try {
        run_stage(stage, setting, record, progress);
    } catch (const std::exception& error) {
        // What a program left cannot be read: its own fault, and no other stage's.
        record.stage.status = "failed";
        record.stage.detail = one_line(error.what());
        record.result = ordered_json::object();
    }
}

bool has_passed(const Evidence& evidence, int number) {
    const auto record = evidence.records().find(number);
    return record != evidence.records().end() && record->second.stage.status == "passed";
}

/// True when nothing that was asked for has failed, or is missing.
bool all_well(const std::map<int, std::string>& names, const Evidence& evidence) {
    return std::all_of(names.begin(), names.end(), [&](const auto& entry) {
        const auto record = evidence.records().find(entry.first);
        return record != evidence.records().end() &&
               (record->second.stage.status == "passed" ||
                record->second.stage.status == "skipped");
    });
}

}  // namespace

int run_stages(const std::vector<Stage>& table, const Request& request,
               Evidence& evidence) {
    const InterruptGuard guard;
    const auto start = Clock::now();
    std::map<int, std::string> names;
    Progress progress;
    for (std::size_t i = 0; i < table.size(); ++i) {
        const Stage& stage = table[i];
        const int number = int(i) + 1;
        if (!request.names.contains(stage.name)) continue;
        names[number] = stage.name;
        if (interrupted() || has_passed(evidence, number)) continue;
        Record record;
        record.number = number;
        record.attempt = evidence.next_attempt(number, stage.name);
        record.dry = request.dry;
        record.budget = stage.budget;
        record.stage.name = stage.name;
        record.result = ordered_json::object();
        const Setting setting{
            request.dry, evidence.stem(number, stage.name, record.attempt),
            std::min(stage.budget, request.budget - seconds_since(start))};
        progress.begin(stage.name, std::max(0.0, setting.budget));
        const auto begun = Clock::now();
        run_or_refuse(stage, request, setting, record, progress);
        record.stage.seconds = seconds_since(begun);
        evidence.add(record);
        progress.end(record);
    }
    print_summary(names, evidence, seconds_since(start));
    return all_well(names, evidence) ? kExitOk : kExitDiffers;
}

}  // namespace moe::gpu_check
