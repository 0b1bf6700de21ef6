// matching.cpp: which accesses of a warp's lanes were one instruction.

#include <bit>
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

/// As long as all lanes have the same instruction next, it is theirs together. A lane
/// that is at its end has left: the others go on.
void match_in_step(Rests& rests, unsigned& mask, WarpCounter& counter) {
    Instruction instruction;
    for (;;) {
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            if (const int lane = std::countr_zero(lanes);
                rests[lane].at == rests[lane].end)
                mask &= ~(1u << lane);
        if (mask == 0) return;
        const Record& leader = *rests[std::countr_zero(mask)].at;
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
            const int lane = std::countr_zero(lanes);
            const Record& record = *rests[lane].at;
            if (record.pc != leader.pc || (record.place ^ leader.place) >> 48 != 0)
                return;
            instruction.addresses[lane] = record.address();
        }
        instruction.pc = leader.pc;
        instruction.size = leader.size();
        instruction.kind = leader.kind();
        instruction.mask = mask;
        counter.count(instruction);
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            ++rests[std::countr_zero(lanes)].at;
    }
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
            const std::uint32_t n = count[at->pc]++;
            auto& those = executions[at->pc];
            if (n == those.size()) {
                those.push_back(std::uint32_t(instructions.size()));
                instructions.emplace_back();
                instructions.back().pc = at->pc;
                instructions.back().size = at->size();
                instructions.back().kind = at->kind();
            }
            Instruction& instruction = instructions[those[n]];
            instruction.mask |= 1u << lane;
            instruction.addresses[lane] = at->address();
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
