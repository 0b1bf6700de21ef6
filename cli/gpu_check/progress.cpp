#include "cli/gpu_check/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

namespace moe::gpu_check {
namespace {

constexpr std::size_t kWidest = 100;  // of a detail, in bytes

const char* mark(const std::string& status) {
    return status == "passed" ? "✓" : status == "skipped" ? "-" : "✗";
}

/// Cut where no character is torn.
std::string shortened(std::string text) {
    if (text.size() <= kWidest) return text;
    std::size_t end = kWidest;
    while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    return text.substr(0, end) + "…";
}

void print_row(const Record& record) {
    const bench::Stage& stage = record.stage;
    const std::string status =
        stage.status == "passed" || stage.status == "failed" ? "" : stage.status + ": ";
    fmt::print("{} {:<12} {:>5.1f} of {:>3.0f} s  {}\n", mark(stage.status), stage.name,
               stage.seconds, record.budget, shortened(status + stage.detail));
}

}  // namespace

Progress::Progress() : terminal_(isatty(STDOUT_FILENO) == 1) {}

void Progress::begin(const std::string& stage, double budget) {
    stage_ = stage;
    budget_ = budget;
    shown_second_ = -1;
    if (!terminal_) fmt::print("  {}: at most {:.0f} s\n", stage, budget);
    std::fflush(stdout);
}

void Progress::tick(const std::string& what, double seconds) {
    if (!terminal_ || int(seconds) == shown_second_) return;
    shown_second_ = int(seconds);
    fmt::print("\r\033[K  {}{}  {} of {:.0f} s", stage_, what.empty() ? "" : " " + what,
               shown_second_, budget_);
    std::fflush(stdout);
}

void Progress::end(const Record& record) {
    if (terminal_) fmt::print("\r\033[K");
    print_row(record);
    std::fflush(stdout);
}

void print_summary(const std::map<int, std::string>& names, const Evidence& evidence,
                   double seconds) {
    fmt::print("\nSummary, {:.0f} s\n", seconds);
    for (const auto& [number, name] : names) {
        const auto record = evidence.records().find(number);
        if (record == evidence.records().end())
            fmt::print("- {:<12} {:>14}  did not run\n", name, "");
        else
            print_row(record->second);
    }
    const std::string result = evidence.result_path();
    fmt::print("Files    {}\n", std::filesystem::path(result).parent_path().string());
    fmt::print("File it  moe results --add {}\n", result);
    std::fflush(stdout);
}

}  // namespace moe::gpu_check
