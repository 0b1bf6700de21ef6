// profile.cpp: what was seen, added up and told.

#include "observe/profile.h"

#include <algorithm>

namespace cuda_on_cpu::observe {

thread_local RunningLaunch running_launch;

Profile& profile() {
    static auto* all = new Profile;  // memory is freed after static objects are gone
    return *all;
}

// -------------------------------------------------------------------------------- spots
std::uint32_t SpotTable::look_up(std::uint64_t pc) {
    const auto [found, is_new] = by_pc_.try_emplace(pc, std::uint32_t(spots_.size()));
    if (is_new) spots_.push_back({pc, {}, nullptr});
    recent_[recent_index(pc)] = {pc, found->second};
    return found->second;
}

std::uint32_t SpotTable::of(Site site) {
    const auto [found, is_new] =
        by_site_.try_emplace({site.file, site.line}, std::uint32_t(spots_.size()));
    if (is_new) spots_.push_back({0, {site.file, site.line}, nullptr});
    return found->second;
}

std::uint64_t SpotTable::pc_of(Site site) {
    return std::uint64_t{1} << 63 | of(site);
}

SourceLine SpotTable::line(std::uint32_t spot) const {
    return spots_[spot].pc == 0 ? spots_[spot].place : source_line(spots_[spot].pc);
}

void SpotTable::forget(const Allocation* allocation) {
    for (Spot& spot : spots_)
        if (spot.last == allocation) spot.last = nullptr;
}

// -------------------------------------------------------------------------------- sums
namespace {

void add(Requests& to, const Requests& from) {
    to.requests += from.requests;
    to.sectors += from.sectors;
    to.ideal_sectors += from.ideal_sectors;
}

}  // namespace

Counters& Counters::operator+=(const Counters& other) {
    add(loads, other.loads);
    add(stores, other.stores);
    add(atomics, other.atomics);
    shared.requests += other.shared.requests;
    shared.wavefronts += other.shared.wavefronts;
    shared.ideal_wavefronts += other.shared.ideal_wavefronts;
    shared.most_ways = std::max(shared.most_ways, other.shared.most_ways);
    atomic_degree = std::max(atomic_degree, other.atomic_degree);
    instructions += other.instructions;
    divergent += other.divergent;
    barriers += other.barriers;
    sectors_read += other.sectors_read;
    sectors_written += other.sectors_written;
    async_sectors += other.async_sectors;
    async_bytes += other.async_bytes;
    mma_flops += other.mma_flops;
    return *this;
}

void Profile::find(Finding::Kind kind, const SourceLine& line, const SourceLine& other,
                   const std::string& text) {
    const auto [found, is_new] = found_.try_emplace(
        {kind, line.file, line.line, to_string(other)}, findings.size());
    if (is_new)
        findings.push_back({kind, line.file, line.line, other.file, other.line, text, 1});
    else
        ++findings[found->second].times;
}

// ------------------------------------------------------------------------- for programs
void start(const Options& options) {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    all.is_on = true;
    all.options = options;
    all.races.told.clear();
    all.kernels.clear();
    all.launches.clear();
    all.findings.clear();
    all.found_.clear();
    all.host_waits = 0;
    all.memory.start();
}

void stop() {
    const std::lock_guard lock(profile().mutex);
    profile().is_on = false;
    profile().options = {};
}

std::size_t launches_seen() {
    const std::lock_guard lock(profile().mutex);
    return profile().launches.size();
}

Report report() {
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    Report result;
    for (const auto& kernel : all.kernels) {
        std::map<std::pair<std::string, int>, LineReport> by_line;
        for (std::uint32_t spot = 0; spot < kernel->by_spot.size(); ++spot)
            if (const Counters& counters = kernel->by_spot[spot];
                counters.instructions > 0 || counters.async_sectors > 0 ||
                counters.async_bytes > 0 || counters.mma_flops > 0) {
                const SourceLine line = all.spots.line(spot);
                LineReport& told = by_line[{line.file, line.line}];
                told.counters += counters;
                if (const auto sample = kernel->samples.find(spot);
                    sample != kernel->samples.end())
                    told.samples.push_back(sample->second);
            }
        KernelReport told{kernel->name, kernel->launches, kernel->total, {}};
        for (auto& [line, each] : by_line) {
            std::tie(each.file, each.line) = line;
            told.lines.push_back(std::move(each));
        }
        result.kernels.push_back(std::move(told));
    }
    result.launches = all.launches;
    result.findings = all.findings;
    result.host_waits = all.host_waits;
    result.allocations = all.memory.allocations();
    result.peak_bytes = all.memory.peak_bytes();
    return result;
}

}  // namespace cuda_on_cpu::observe
