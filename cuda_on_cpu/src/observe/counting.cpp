// counting.cpp: sectors, banks and same addresses of a warp instruction.

#include "observe/counting.h"

#include <algorithm>
#include <bit>

namespace cuda_on_cpu::observe {
namespace {

/// Makes the first `count` ascending and distinct; how many remain.
template <std::size_t N>
unsigned sort_unique(std::array<std::uint64_t, N>& values, unsigned count) {
    std::sort(values.begin(), values.begin() + count);
    return unsigned(std::unique(values.begin(), values.begin() + count) - values.begin());
}

/// Most lanes on one address.
unsigned same_address(const Instruction& instruction, unsigned mask) {
    unsigned most = 0;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const std::uint64_t address = instruction.addresses[std::countr_zero(lanes)];
        unsigned same = 0;
        for (unsigned others = lanes; others != 0; others &= others - 1)
            same += instruction.addresses[std::countr_zero(others)] == address;
        most = std::max(most, same);
    }
    return most;
}

/// True when no bank holds two of the words: most instructions, so it is asked first.
bool is_without_conflict(const std::array<std::uint64_t, kWarpSize>& words,
                         unsigned count) {
    std::array<std::uint64_t, 32> in_bank;
    unsigned taken = 0;
    for (unsigned i = 0; i < count; ++i) {
        const unsigned bank = words[i] % 32;
        if (taken >> bank & 1 && in_bank[bank] != words[i]) return false;
        in_bank[bank] = words[i];
        taken |= 1u << bank;
    }
    return true;
}

/// The most words of one bank.
unsigned most_in_a_bank(std::array<std::uint64_t, kWarpSize>& words, unsigned count) {
    if (is_without_conflict(words, count)) return 1;
    count = sort_unique(words, count);
    std::array<std::uint8_t, 32> in_bank{};
    unsigned most = 0;
    for (unsigned i = 0; i < count; ++i)
        most = std::max<unsigned>(most, ++in_bank[words[i] % 32]);
    return most;
}

/// Those of the lanes whose address is `inside`, a range without gaps.
template <typename Inside>
unsigned lanes_where(const Instruction& instruction, unsigned mask, Inside inside) {
    if (inside(instruction.lowest) && inside(instruction.highest)) return mask;
    unsigned those = 0;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        if (inside(instruction.addresses[lane])) those |= 1u << lane;
    }
    return those;
}

}  // namespace

Sectors::Sectors(const Instruction& instruction, unsigned mask) {
    std::array<std::uint64_t, kWarpSize> addresses;
    unsigned lanes = 0;
    bool in_order = true;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
        const std::uint64_t address = instruction.addresses[std::countr_zero(rest)];
        if (lanes > 0 && address == addresses[lanes - 1]) continue;
        in_order = in_order && (lanes == 0 || address > addresses[lanes - 1]);
        addresses[lanes++] = address;
    }
    if (!in_order) lanes = sort_unique(addresses, lanes);
    for (unsigned i = 0; i < lanes; ++i) {
        const std::uint64_t first = addresses[i] / kSector;
        const std::uint64_t last = (addresses[i] + instruction.size - 1) / kSector;
        if (count_ == 0 || sectors_[count_ - 1] != first) sectors_[count_++] = first;
        if (last != first) sectors_[count_++] = last;
    }
    ideal_ = unsigned((std::uint64_t(lanes) * instruction.size + kSector - 1) / kSector);
}

// TUTORIAL: shared memory has 32 banks, and consecutive 4-byte words lie in consecutive
// banks. A bank serves one word at a time, to as many lanes as want it; other words of
// the same bank wait for the next turn. 32 lanes of 8 bytes are more than the banks move
// at once, so they come in two halves, and those of 16 bytes in four quarters.
BankTurns bank_turns(const Instruction& instruction, unsigned mask) {
    const unsigned parts = std::max(1u, instruction.size / 4);
    const unsigned lanes_each = kWarpSize / parts;
    BankTurns result;
    for (unsigned part = 0; part < parts; ++part) {
        const unsigned those = lanes_each == 32
                                   ? mask
                                   : mask >> part * lanes_each & ((1u << lanes_each) - 1);
        if (those == 0) continue;
        std::array<std::uint64_t, kWarpSize> words;
        unsigned count = 0;
        for (unsigned rest = those; rest != 0; rest &= rest - 1) {
            const unsigned lane = part * lanes_each + std::countr_zero(rest);
            for (unsigned i = 0; i < parts; ++i)
                words[count++] = instruction.addresses[lane] / 4 + i;
        }
        const unsigned ways = most_in_a_bank(words, count);
        result.turns += ways;
        result.ideal += 1;
        result.ways = std::max(result.ways, ways);
    }
    return result;
}

WarpCounter::WarpCounter(Lanes& lanes, int first)
    : lanes_(lanes),
      profile_(profile()),
      sum_(running_launch.counters),
      first_(first),
      present_(lanes.lanes_of(first / kWarpSize)) {}

void WarpCounter::count(const Instruction& instruction) {
    const std::uint32_t number = profile_.spots.of(instruction.pc);
    Counters& line = running_launch.kernel->at(number);
    bool is_counted = false;
    // One turn, unless lanes of one instruction point to different memories
    for (unsigned rest = instruction.mask; rest != 0;) {
        const int leader = std::countr_zero(rest);
        const std::uint64_t address = instruction.addresses[leader];
        if (lanes_.is_argument(address)) {
            rest &= ~lanes_where(instruction, rest,
                                 [&](auto theirs) { return lanes_.is_argument(theirs); });
            continue;
        }
        const Lanes* const shared = lanes_.owner_of(address);
        Allocation* allocation =
            shared ? nullptr : profile_.allocation_at(number, address);
        if (!shared && allocation == nullptr) {
            rest &= rest - 1;
            if (!is_program_data(address))
                tell_of_fault(instruction, leader, profile_.memory.describe(address));
            continue;
        }
        const unsigned together = lanes_where(instruction, rest, [&](auto theirs) {
            return shared ? shared->is_shared(theirs) : allocation->contains(theirs);
        });
        rest &= ~together;
        const unsigned inside = shared ? check_shared(instruction, together, *shared)
                                       : check_global(instruction, together, *allocation);
        if (inside == 0) continue;
        is_counted = true;
        if (line.instructions == 0)
            keep_sample(number, instruction, inside, shared != nullptr,
                        shared ? shared->arena() : allocation->base);
        if (shared)
            count_shared(instruction, inside, line);
        else
            count_global(instruction, inside, *allocation, line);
    }
    if (!is_counted) return;
    const bool divergent = instruction.mask != present_;
    for (Counters* counters : {&line, &sum_}) {
        ++counters->instructions;
        counters->divergent += divergent;
    }
}

void WarpCounter::keep_sample(std::uint32_t spot, const Instruction& instruction,
                              unsigned mask, bool is_shared, std::uint64_t base) {
    Sample sample;
    sample.access = is_atomic(instruction.kind) ? Sample::Access::atomic
                    : writes(instruction.kind)  ? Sample::Access::store
                                                : Sample::Access::load;
    sample.is_shared = is_shared;
    sample.bytes = instruction.size;
    sample.mask = mask;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        sample.offsets[lane] = instruction.addresses[lane] - base;
    }
    running_launch.kernel->samples.try_emplace(spot, sample);
}

unsigned WarpCounter::check_shared(const Instruction& instruction, unsigned mask,
                                   const Lanes& owner) {
    const std::size_t given = lanes_.launch().smem;
    if (owner.is_shared(instruction.lowest) &&
        instruction.highest + instruction.size <= owner.arena() + given)
        return mask;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        const std::uint64_t offset = instruction.addresses[lane] - owner.arena();
        if (offset + instruction.size <= given) continue;
        mask &= ~(1u << lane);
        tell_of_fault(instruction, lane,
                      "offset " + std::to_string(offset) + " of " +
                          std::to_string(given) + " bytes of shared memory" +
                          (&owner == &lanes_ ? "" : " of " + owner.name()));
    }
    return mask;
}

unsigned WarpCounter::check_global(const Instruction& instruction, unsigned mask,
                                   const Allocation& allocation) {
    if (allocation.contains(instruction.lowest) &&
        allocation.contains(instruction.highest + instruction.size - 1))
        return mask;
    for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1) {
        const int lane = std::countr_zero(lanes);
        const std::uint64_t last = instruction.addresses[lane] + instruction.size - 1;
        if (allocation.contains(last)) continue;
        mask &= ~(1u << lane);
        tell_of_fault(instruction, lane, "across the end of " + allocation.name());
    }
    return mask;
}

void WarpCounter::count_shared(const Instruction& instruction, unsigned mask,
                               Counters& line) {
    const BankTurns banks = bank_turns(instruction, mask);
    for (Counters* counters : {&line, &sum_}) {
        ++counters->shared.requests;
        counters->shared.wavefronts += banks.turns;
        counters->shared.ideal_wavefronts += banks.ideal;
        counters->shared.most_ways =
            std::max<std::uint64_t>(counters->shared.most_ways, banks.ways);
    }
    if (instruction.kind == Kind::atomic) count_degree(instruction, mask, line);
}

void WarpCounter::count_global(const Instruction& instruction, unsigned mask,
                               Allocation& allocation, Counters& line) {
    const Sectors sectors(instruction, mask);
    profile_.memory.touch(allocation);
    const std::uint64_t first = allocation.base / kSector;
    for (const std::uint64_t sector : sectors) {
        if (reads(instruction.kind)) allocation.read.insert(sector - first);
        if (writes(instruction.kind)) allocation.written.insert(sector - first);
    }
    for (Counters* counters : {&line, &sum_}) {
        Requests& requests = instruction.kind == Kind::atomic ? counters->atomics
                             : writes(instruction.kind)       ? counters->stores
                                                              : counters->loads;
        ++requests.requests;
        requests.sectors += sectors.count();
        requests.ideal_sectors += sectors.ideal();
    }
    if (instruction.kind == Kind::atomic) count_degree(instruction, mask, line);
}

void WarpCounter::count_degree(const Instruction& instruction, unsigned mask,
                               Counters& line) {
    const std::uint64_t degree = same_address(instruction, mask);
    for (Counters* counters : {&line, &sum_})
        counters->atomic_degree = std::max(counters->atomic_degree, degree);
}

void WarpCounter::tell_of_fault(const Instruction& instruction, int lane,
                                const std::string& where) {
    const SourceLine line = profile_.spots.line(profile_.spots.of(instruction.pc));
    const std::string text = std::string("illegal ") + name_of(instruction.kind) +
                             " of " + std::to_string(instruction.size) +
                             (instruction.size == 1 ? " byte" : " bytes") + ", " + where +
                             ", at " + to_string(line) + ", in kernel " +
                             lanes_.launch().name + ", " + lanes_.name_of(first_ + lane);
    profile_.find(Finding::Kind::out_of_bounds, line, {}, text);
    lanes_.fail(text);
}

}  // namespace cuda_on_cpu::observe
