// memory.cpp: which device allocation an address lies in.

#include "observe/memory.h"

#include <link.h>

#include <algorithm>

namespace cuda_on_cpu::observe {

namespace {

std::string ordinal(std::uint64_t n) {
    const bool teen = n / 10 % 10 == 1;
    const char* ending = teen          ? "th"
                         : n % 10 == 1 ? "st"
                         : n % 10 == 2 ? "nd"
                         : n % 10 == 3 ? "rd"
                                       : "th";
    return std::to_string(n) + ending;
}

std::string in_bytes(std::uint64_t bytes) {
    return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

}  // namespace

std::string Allocation::name() const {
    if (number == 0) return "pinned host memory, of " + in_bytes(bytes);
    return "the " + ordinal(number) + " device allocation, of " + in_bytes(bytes);
}

Allocation& MemoryTable::add(std::uint64_t base, std::size_t bytes, bool on_device) {
    Allocation& fresh = by_base_[base];
    fresh.base = base;
    fresh.bytes = bytes;
    if (!on_device) return fresh;
    fresh.number = ++made_;
    bytes_ += bytes;
    peak_ = std::max(peak_, bytes_);
    return fresh;
}

void MemoryTable::remove(std::uint64_t base) {
    const auto found = by_base_.find(base);
    if (found == by_base_.end()) return;
    std::erase(touched_, &found->second);
    if (found->second.number != 0) bytes_ -= found->second.bytes;
    by_base_.erase(found);
}

Allocation* MemoryTable::find(std::uint64_t address) {
    auto after = by_base_.upper_bound(address);
    if (after == by_base_.begin()) return nullptr;
    --after;
    return after->second.contains(address) ? &after->second : nullptr;
}

std::string MemoryTable::describe(std::uint64_t address) const {
    constexpr std::uint64_t kNear = 64 * 1024;
    const auto after = by_base_.upper_bound(address);
    if (after != by_base_.begin()) {
        const Allocation& before = std::prev(after)->second;
        const std::uint64_t past = address - before.base;
        if (past < before.bytes) return in_bytes(past) + " into " + before.name();
        if (past - before.bytes < kNear)
            return in_bytes(past - before.bytes) + " past the end of " + before.name();
    }
    if (after != by_base_.end() && after->first - address < kNear)
        return in_bytes(after->first - address) + " before " + after->second.name();
    return "in no device allocation";
}

void MemoryTable::touch(Allocation& allocation) {
    if (allocation.is_touched) return;
    allocation.is_touched = true;
    const std::size_t sectors = (allocation.bytes + kSector - 1) / kSector;
    allocation.read.clear(sectors);
    allocation.written.clear(sectors);
    touched_.push_back(&allocation);
}

std::pair<std::uint64_t, std::uint64_t> MemoryTable::take_touched() {
    std::pair<std::uint64_t, std::uint64_t> sums{0, 0};
    for (Allocation* allocation : touched_) {
        sums.first += allocation->read.count();
        sums.second += allocation->written.count();
        allocation->is_touched = false;
    }
    touched_.clear();
    return sums;
}

void MemoryTable::start() {
    made_before_ = made_;
    peak_ = bytes_;
    for (auto& [base, allocation] : by_base_) allocation.drop_shadow();
}

bool is_program_data(std::uint64_t address) {
    struct Range {
        std::uint64_t low, size;
    };
    static const std::vector<Range> ranges = [] {
        std::vector<Range> found;
        dl_iterate_phdr(
            [](dl_phdr_info* info, std::size_t, void* list) {
                for (int i = 0; i < info->dlpi_phnum; ++i)
                    if (const auto& segment = info->dlpi_phdr[i];
                        segment.p_type == PT_LOAD)
                        static_cast<std::vector<Range>*>(list)->push_back(
                            {info->dlpi_addr + segment.p_vaddr, segment.p_memsz});
                return 0;
            },
            &found);
        return found;
    }();
    return std::any_of(ranges.begin(), ranges.end(), [address](const Range& range) {
        return address - range.low < range.size;
    });
}

}  // namespace cuda_on_cpu::observe
