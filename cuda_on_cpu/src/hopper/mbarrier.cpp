// mbarrier.cpp: arrivals, bytes and phases.

#include "hopper/mbarrier.h"

#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {
namespace {

// What the 64 bits in shared memory hold: a mark, and which of the block's barriers it
// is. Whoever overwrites it is found out at the next use.
constexpr std::uint64_t kMark = 0x6d626172'00000000u;
bool is_mark(std::uint64_t word) {
    return word >> 32 == kMark >> 32;
}
constexpr std::uint32_t kMostArrivals = (1u << 20) - 1;
constexpr std::int64_t kMostBytes = (1 << 20) - 1;

/// What a waiting thread waits for: the barrier, and the low bits of the phase.
std::uint64_t wait_object(std::uint64_t index, std::uint64_t phase) {
    return index << 32 | (phase & 0xffffffffu);
}

}  // namespace

void Mbarriers::init(Block& block, std::uint64_t* word, std::uint32_t count, Site site) {
    const std::size_t position = shared_position(block, "mbarrier_init", word, 8, 8);
    if (count < 1 || count > kMostArrivals)
        throw Fault{"mbarrier_init: count = " + std::to_string(count) +
                    ": must be from 1 to " + std::to_string(kMostArrivals)};
    for (const Mbarrier& other : barriers_)
        if (other.alive && other.position == position && is_mark(*word))
            throw Fault{"mbarrier_init: there is an mbarrier at " +
                        shared_offset(block, word) + ", initialised at " +
                        place(other.site) + ": mbarrier_invalidate it first"};
    *word = kMark | barriers_.size();
    Mbarrier barrier;
    barrier.position = std::uint32_t(position);
    barrier.alive = true;
    barrier.initialised_by = block.current();
    barrier.expected = barrier.pending = count;
    barrier.site = site;
    barriers_.push_back(barrier);
}

Mbarrier& Mbarriers::find(Block& block, std::uint64_t* word, const char* function,
                          Site site) {
    const std::size_t position = shared_position(block, function, word, 8, 8);
    const std::uint64_t index = *word & 0xffffffffu;
    if (is_mark(*word) && index < barriers_.size() &&
        barriers_[index].position == position && barriers_[index].alive)
        return barriers_[index];
    for (const Mbarrier& barrier : barriers_)
        if (barrier.position == position && barrier.alive)
            throw Fault{std::string(function) + ": the mbarrier at " +
                            shared_offset(block, word) + ", initialised at " +
                            place(barrier.site) + ", was overwritten",
                        site};
    throw Fault{std::string(function) + ": no mbarrier was initialised at " +
                    shared_offset(block, word),
                site};
}

void Mbarriers::invalidate(Block& block, std::uint64_t* word, Site site) {
    Mbarrier& barrier = find(block, word, "mbarrier_invalidate", site);
    const auto index = std::uint64_t(&barrier - barriers_.data());
    for (int t = 0; t < block.count(); ++t)
        if (block.state(t) == Block::State::mbarrier && block.waits_for(t) >> 32 == index)
            throw Fault{"mbarrier_invalidate: thread " + std::to_string(t) +
                        " of the block waits for the mbarrier at " +
                        shared_offset(block, word)};
    barrier.alive = false;
    *word = ~std::uint64_t{0};
}

void Mbarriers::arrive(Block& block, std::uint64_t* word, std::uint32_t count,
                       Site site) {
    Mbarrier& barrier = find(block, word, "mbarrier_arrive", site);
    if (count < 1 || count > barrier.pending)
        throw Fault{"mbarrier_arrive: " + std::to_string(count) +
                        (count == 1 ? " arrival" : " arrivals") + " at the mbarrier at " +
                        shared_offset(block, word) + ", which expects " +
                        std::to_string(barrier.expected) + " in a phase and waits for " +
                        std::to_string(barrier.pending) + " more",
                    site};
    barrier.pending -= count;
    complete_if_due(block, barrier);
}

void Mbarriers::expect_one_more(Block& block, std::uint64_t* word, Site site) {
    ++find(block, word, "cp_async_mbarrier_arrive", site).pending;
}

void Mbarriers::expect_bytes(Block& block, std::uint64_t* word, std::uint32_t bytes,
                             Site site) {
    Mbarrier& barrier = find(block, word, "mbarrier_expect_tx", site);
    barrier.bytes += bytes;
    barrier.announced += bytes;
    if (barrier.bytes > kMostBytes)
        throw Fault{"mbarrier_expect_tx: " + std::to_string(barrier.bytes) +
                        " bytes are expected: must be at most " +
                        std::to_string(kMostBytes),
                    site};
    complete_if_due(block, barrier);
}

void Mbarriers::complete_bytes(Block& block, std::uint64_t* word, std::uint32_t bytes,
                               Site site) {
    Mbarrier& barrier = find(block, word, "an asynchronous copy", site);
    barrier.bytes -= bytes;
    barrier.moved += bytes;
    if (barrier.bytes < -kMostBytes)
        throw Fault{"an asynchronous copy: " + std::to_string(-barrier.bytes) +
                        " more bytes came than were announced: must be at most " +
                        std::to_string(kMostBytes),
                    site};
    complete_if_due(block, barrier);
}

void Mbarriers::complete_if_due(Block& block, Mbarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    const auto index = std::uint64_t(&barrier - barriers_.data());
    const std::uint64_t awaited = wait_object(index, barrier.phases);
    ++barrier.phases;
    block.hopper().polls = 0;
    if (trace::is_on())
        trace::happened(block, trace::Row::phases, 0,
                        "mbarrier " +
                            shared_offset(block, block.arena() + barrier.position) +
                            ": phase " + std::to_string(barrier.phases));
    barrier.pending = barrier.expected;
    barrier.announced = barrier.moved = 0;
    for (int t = 0; t < block.count(); ++t)
        if (block.state(t) == Block::State::mbarrier && block.waits_for(t) == awaited)
            block.release(t);
}

bool Mbarriers::test(Block& block, std::uint64_t* word, std::uint32_t parity, Site site) {
    if (parity > 1)
        throw Fault{
            "mbarrier wait: parity = " + std::to_string(parity) + ": must be 0 or 1",
            site};
    return (find(block, word, "mbarrier wait", site).phases & 1) != parity;
}

void Mbarriers::wait(Block& block, std::uint64_t* word, std::uint32_t parity, Site site) {
    if (test(block, word, parity, site)) return;
    const Mbarrier& barrier = find(block, word, "mbarrier wait", site);
    const auto index = std::size_t(&barrier - barriers_.data());
    const std::uint64_t phase = barrier.phases;
    block.wait_for(Block::State::mbarrier, site, wait_object(index, phase));
    const observe::Unseen unseen;  // again, after other threads' turns
    // A thread that is slow to look would see a parity that looks like its own again.
    if (barriers_[index].phases > phase + 1)
        throw Fault{"mbarrier wait: phase overrun: the mbarrier at " +
                        shared_offset(block, word) + " has completed phases " +
                        std::to_string(phase) + " to " +
                        std::to_string(barriers_[index].phases - 1) +
                        " before this thread saw the first: parity cannot tell them",
                    site};
}

void Mbarriers::check_visible(Block& block, std::uint64_t* word, Site site) {
    const Mbarrier& barrier = find(block, word, "an asynchronous copy", site);
    if (!barrier.visible)
        throw Fault{"an asynchronous copy is to complete on the mbarrier at " +
                        shared_offset(block, word) + ", initialised at " +
                        place(barrier.site) +
                        ": fence_mbarrier_init or fence_proxy_async must follow the "
                        "init, by the same thread",
                    site};
}

void Mbarriers::fence(int thread) {
    for (Mbarrier& barrier : barriers_)
        if (barrier.initialised_by == thread) barrier.visible = true;
}

void Mbarriers::check_exit(const Block& block) const {
    for (const Mbarrier& barrier : barriers_)
        if (barrier.alive && barrier.bytes != 0)
            throw Fault{"the block exits, but the mbarrier at " +
                            shared_offset(block, block.arena() + barrier.position) +
                            " was told of " + std::to_string(barrier.announced) +
                            " bytes in this phase and " + std::to_string(barrier.moved) +
                            " came",
                        barrier.site};
}

std::string Mbarriers::describe(std::uint64_t index, std::uint64_t phase) const {
    const Mbarrier& barrier = barriers_[index];
    char text[160];
    std::snprintf(text, sizeof text, "mbarrier +0x%x, parity %d (phase %llu, ",
                  barrier.position, int(phase & 1),
                  static_cast<unsigned long long>(barrier.phases));
    std::string result = text;
    result += std::to_string(barrier.expected - barrier.pending) + " of " +
              std::to_string(barrier.expected) + " arrivals";
    if (barrier.announced != 0 || barrier.moved != 0)
        result += ", " + std::to_string(barrier.moved) + " of " +
                  std::to_string(barrier.announced) + " bytes";
    return result + "; init at " + place(barrier.site) + ")";
}

}  // namespace cuda_on_cpu
