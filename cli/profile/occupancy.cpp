#include "cli/profile/occupancy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <sstream>

#include "cli/profile/figures.h"
#include "cli/words.h"

namespace moe::profile {
namespace {

constexpr int kWarp = 32;

std::int64_t rounded_up(std::int64_t value, std::int64_t to) {
    return (value + to - 1) / to * to;
}

}  // namespace

std::map<std::string, Resources> read_kernel_table(const std::string& table) {
    std::map<std::string, Resources> all;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line);) {
        // A template's arguments may hold blanks, so the columns are read from the end.
        std::istringstream words(line);
        std::vector<std::string> cells;
        for (std::string cell; words >> cell;) cells.push_back(cell);
        if (cells.size() < 6 || cells[cells.size() - 5] != "sm_90a") continue;
        Resources& kernel = all[line.substr(0, line.find_first_of("< "))];
        const auto number = [&](std::size_t from_end) {
            return std::atoll(cells[cells.size() - from_end].c_str());
        };
        kernel.registers = std::max(kernel.registers, int(number(4)));
        kernel.smem = std::max<std::int64_t>(kernel.smem, number(1));
    }
    return all;
}

Occupancy occupancy_of(const Resources& resources, unsigned threads, std::size_t smem) {
    constexpr std::int64_t kRegisters = 65'536, kWarps = 64, kBlocks = 32;
    constexpr std::int64_t kShared = 228 * 1024, kReserved = 1024;  // of each block
    const std::int64_t warps = rounded_up(threads, kWarp) / kWarp;
    // Registers are given to warps, 256 at a time; shared memory 128 bytes at a time.
    const std::int64_t registers =
        warps * rounded_up(std::max(resources.registers, 1) * kWarp, 256);
    const std::int64_t shared =
        rounded_up(resources.smem + std::int64_t(smem), 128) + kReserved;
    const std::array<std::pair<std::int64_t, const char*>, 4> limits = {
        {{kWarps / warps, "threads"},
         {kBlocks, "blocks"},
         {kRegisters / registers, "registers"},
         {kShared / shared, "shared memory"}}};
    const auto& [blocks, limit] = *std::min_element(
        limits.begin(), limits.end(),
        [](const auto& one, const auto& other) { return one.first < other.first; });
    return {int(blocks), limit, double(blocks * warps) / double(kWarps)};
}

void print_occupancy(const LayerProfile& profile, const std::string& component,
                     const std::map<std::string, Resources>& table) {
    std::set<std::string> told;
    std::string lines;
    for (const StepProfile& step : profile.steps) {
        if (!belongs_to(step.steps, component)) continue;
        for (const KernelUse& use : step.kernels) {
            const auto found = table.find(use.kernel);
            if (found == table.end() || !told.insert(use.kernel).second) continue;
            const Occupancy is = occupancy_of(found->second, use.threads, use.smem);
            lines += fmt::format("{:<32}{:>9}{:>9}{:>10}{:>8}{:>7.0f} %  {}\n",
                                 short_name(use.kernel), found->second.registers,
                                 use.threads, bytes_in_words(std::int64_t(use.smem)),
                                 is.blocks, 100.0 * is.share, is.limit);
        }
    }
    if (lines.empty()) return;
    fmt::print(
        "\noccupancy on sm_90a, from what ptxas says (.ci/cuda)\n"
        "{:<32}{:>9}{:>9}{:>10}{:>8}{:>9}  {}\n{}",
        "", "registers", "threads", "shared", "blocks", "warps", "limit", lines);
}

}  // namespace moe::profile
