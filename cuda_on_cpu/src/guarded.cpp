#include "guarded.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

#include "page.h"

namespace cuda_on_cpu {
namespace {

using Address = std::uintptr_t;

/// Forbidden on each side: address space costs nothing, and strides are long.
const std::size_t kGuard = 16 * kPage;
constexpr std::size_t kAlignment = 256, kMostFreed = 1024, kMostChecked = 256;

/// One mapping: guard, slack, the allocation, slack, guard.
struct Range {
    Address begin, end;  ///< of the allocation
    std::size_t bytes() const { return end - begin; }
    Address first_page() const { return begin & ~(kPage - 1); }
    Address last_page() const { return (end + kPage - 1) & ~(kPage - 1); }
    void* pages() const { return reinterpret_cast<void*>(first_page()); }
    std::size_t page_bytes() const { return last_page() - first_page(); }
};

std::mutex mutex;
std::map<Address, Range> live, freed;  // by begin
std::deque<Address> freed_order;       // oldest first

/// A page of canary, for an address of either parity: NaN as float, double and bf16, a
/// large index, and not what fresh memory holds.
const unsigned char* canary(Address address) {
    static const std::vector<unsigned char> pattern = [] {
        std::vector<unsigned char> bytes(kPage + 1);
        for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = i % 2 ? 0x7F : 0xFE;
        return bytes;
    }();
    return pattern.data() + address % 2;
}

std::string bytes_in_words(std::size_t bytes) {
    return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
}

std::string describe(const Range& range, Address address, const char* suffix = "") {
    const std::string what =
        "a device allocation of " + bytes_in_words(range.bytes()) + suffix;
    if (address < range.begin)
        return bytes_in_words(range.begin - address) + " before the start of " + what;
    if (address >= range.end)
        return bytes_in_words(address - range.end) + " past the end of " + what;
    return bytes_in_words(address - range.begin) + " into " + what;
}

/// Makes [from, to) whole. Its first byte that was not, or 0.
Address repair(Address from, Address to) {
    auto* bytes = reinterpret_cast<unsigned char*>(from);
    const unsigned char* whole = canary(from);
    if (std::memcmp(bytes, whole, to - from) == 0) return 0;
    std::size_t first = 0;
    while (bytes[first] == whole[first]) ++first;
    std::memcpy(bytes, whole, to - from);
    return from + first;
}

std::string repair(const Range& range) {
    const Address before = repair(range.first_page(), range.begin);
    const Address after = repair(range.end, range.last_page());
    if (before == 0 && after == 0) return "";
    return "a write " + describe(range, after != 0 ? after : before) +
           " (`./moe test --asan` finds the line)";
}

void unmap(const Range& range) {
    munmap(reinterpret_cast<void*>(range.first_page() - kGuard),
           range.page_bytes() + 2 * kGuard);
}

/// The range in whose mapping the address lies, or null. Mappings do not overlap: it is a
/// neighbour.
const Range* holder(const std::map<Address, Range>& ranges, Address address) {
    const auto holds = [address](const Range& range) {
        return address >= range.first_page() - kGuard &&
               address < range.last_page() + kGuard;
    };
    const auto after = ranges.upper_bound(address);
    if (after != ranges.end() && holds(after->second)) return &after->second;
    if (after == ranges.begin() || !holds(std::prev(after)->second)) return nullptr;
    return &std::prev(after)->second;
}

}  // namespace

void* guarded_allocate(std::size_t bytes) {
    const std::size_t page_bytes = (bytes + kPage - 1) & ~(kPage - 1);
    void* mapping = mmap(nullptr, page_bytes + 2 * kGuard, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    const Address pages = reinterpret_cast<Address>(mapping) + kGuard;
    // Pages are wanted at once: one call is cheaper than a fault for each.
    if (mmap(reinterpret_cast<void*>(pages), page_bytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE, -1,
             0) == MAP_FAILED) {
        munmap(mapping, page_bytes + 2 * kGuard);
        return nullptr;
    }
    const Address begin = (pages + page_bytes - bytes) & ~(kAlignment - 1);
    const Range range{begin, begin + bytes};
    repair(range);  // its canaries do not live yet

    const std::lock_guard lock(mutex);
    live[begin] = range;
    return reinterpret_cast<void*>(begin);
}

std::string guarded_free(void* pointer) {
    const std::lock_guard lock(mutex);
    const Range range = live.extract(reinterpret_cast<Address>(pointer)).mapped();
    const std::string damage = repair(range);
    // A fresh mapping in the old place lets go of the memory, and joins the guards.
    mmap(range.pages(), range.page_bytes(), PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    freed[range.begin] = range;
    freed_order.push_back(range.begin);
    if (freed_order.size() > kMostFreed) {
        unmap(freed.extract(freed_order.front()).mapped());
        freed_order.pop_front();
    }
    return damage;
}

std::string repair_canaries(const void* arguments, std::size_t argument_bytes) {
    const std::lock_guard lock(mutex);
    std::string first;
    const auto check = [&](const Range& range) {
        std::string damage = repair(range);
        if (first.empty()) first = std::move(damage);
    };
    if (live.size() <= kMostChecked) {
        for (const auto& [begin, range] : live) check(range);
        return first;
    }
    for (std::size_t at = 0; at + sizeof(Address) <= argument_bytes;
         at += sizeof(Address)) {
        Address word;
        std::memcpy(&word, static_cast<const char*>(arguments) + at, sizeof word);
        if (const Range* range = holder(live, word)) check(*range);
    }
    return first;
}

std::string describe_forbidden(const void* pointer) {
    const auto address = reinterpret_cast<Address>(pointer);
    const std::lock_guard lock(mutex);
    if (const Range* range = holder(live, address)) {
        const bool inside = address >= range->begin && address < range->end;
        return inside ? "" : describe(*range, address);
    }
    if (const Range* range = holder(freed, address))
        return describe(*range, address, ", freed before");
    return "";
}

}  // namespace cuda_on_cpu
