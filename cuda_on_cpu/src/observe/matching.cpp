// matching.cpp: which accesses of a warp's lanes were one instruction.

#include <bit>
#include <limits>
#include <unordered_map>

#include "observe/counting.h"
#include "observe/requests.h"

namespace cuda_on_cpu::observe {
namespace {

/// What is left of each lane's list.
struct Rest {
    const Record *at, *end;
};
using Rests = std::array<Rest, kWarpSize>;

/// Lanes that are at their end have left: the others go on. The steps that all of them
/// have left.
std::size_t drop_finished(const Rests& rests, unsigned& mask) {
    auto steps = std::numeric_limits<std::ptrdiff_t>::max();
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        const std::ptrdiff_t left = rests[lane].end - rests[lane].at;
        if (left == 0)
            mask &= ~(1u << lane);
        else
            steps = std::min(steps, left);
    }
    return std::size_t(steps);
}

/// The lanes' records at `step`, as one instruction. False when they are not one.
bool is_together(const Rests& rests, unsigned mask, std::size_t step,
                 Instruction& instruction) {
    const Record& leader = rests[std::countr_zero(mask)].at[step];
    instruction.start(leader);
    // Not by add(): these stay in registers
    std::uint64_t differences = 0, lowest = ~std::uint64_t{0}, highest = 0;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        const Record& record = rests[lane].at[step];
        differences |= (record.pc ^ leader.pc) | (record.place ^ leader.place) >> 48;
        const std::uint64_t address = record.address();
        instruction.addresses[lane] = address;
        lowest = std::min(lowest, address);
        highest = std::max(highest, address);
    }
    instruction.mask = mask;
    instruction.lowest = lowest;
    instruction.highest = highest;
    return differences == 0;
}

/// As long as all lanes have the same instruction next, it is theirs together.
void match_in_step(Rests& rests, unsigned& mask, WarpCounter& counter) {
    Instruction instruction;
    for (;;) {
        const std::size_t steps = drop_finished(rests, mask);
        if (mask == 0) return;
        std::size_t step = 0;
        for (; step < steps && is_together(rests, mask, step, instruction); ++step)
            counter.count(instruction);
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            rests[std::countr_zero(lanes)].at += step;
        if (step < steps) return;
    }
}

/// What tells instructions apart: one place may read and write, as cp.async does, and a
/// lane may leave out one of the two.
std::uint64_t of(const Record& record) {
    return record.pc ^ record.place >> 48 << 47;  // addresses of code end below
}

/// The n-th execution of each instruction by each lane.
void match_by_number(const Rests& rests, unsigned mask, WarpCounter& counter) {
    std::vector<Instruction> instructions;
    // By instruction: the index in `instructions` of its n-th execution
    std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> executions;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        std::unordered_map<std::uint64_t, std::uint32_t> count;
        for (const Record* at = rests[lane].at; at != rests[lane].end; ++at) {
            const std::uint32_t n = count[of(*at)]++;
            auto& those = executions[of(*at)];
            if (n == those.size()) {
                those.push_back(std::uint32_t(instructions.size()));
                instructions.emplace_back();
                instructions.back().start(*at);
            }
            instructions[those[n]].add(lane, at->address());
        }
    }
    for (const Instruction& instruction : instructions) counter.count(instruction);
}

}  // namespace

void count_requests(Lanes& lanes, int first, unsigned mask) {
    Rests rests;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        rests[lane] = {lanes.lane(first + lane).begin, lanes.lane(first + lane).end};
    }
    WarpCounter counter(lanes, first);
    match_in_step(rests, mask, counter);
    if (mask != 0) match_by_number(rests, mask, counter);
}

}  // namespace cuda_on_cpu::observe
