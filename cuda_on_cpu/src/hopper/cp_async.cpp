// cp_async.cpp: small copies in groups.

#include "hopper/cp_async.h"

#include <algorithm>
#include <cstring>

#include "cuda_on_cpu/observe_instructions.h"
#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {

void CpAsync::copy(Block& block, void* target, const void* source, unsigned bytes,
                   unsigned source_bytes, Site site) {
    shared_position(block, "cp_async", target, bytes, bytes);
    if (source_bytes > bytes)
        throw Fault{"cp_async: src_bytes = " + std::to_string(source_bytes) +
                        ": must be at most the " + std::to_string(bytes) + " copied",
                    site};
    if (source_bytes > 0) {
        if (reinterpret_cast<std::uintptr_t>(source) % bytes != 0)
            throw Fault{"cp_async: the source must be aligned to the " +
                            std::to_string(bytes) + " bytes that are copied",
                        site};
        check_global("cp_async: the source", source, source_bytes);
    }
    Thread& thread = threads_[std::size_t(block.current())];
    const Copy copy{target,       source, bytes,
                    source_bytes, site,   trace::is_on() ? trace::now(block) : 0};
    observe::lane_access(block.current(), source, source_bytes, false, site);
    observe::lane_access(block.current(), target, bytes, true, site);
    if (block.launch().asynchrony.deferred) {
        std::memset(target, 0xFF, bytes);  // what is there now must not be read
        thread.copies.push_back(copy);
    } else {
        perform(copy);
        if (trace::is_on()) note(block, block.current(), copy, "");
        ++thread.first;
    }
}

void CpAsync::perform(const Copy& copy) {
    if (copy.source_bytes > 0) std::memcpy(copy.target, copy.source, copy.source_bytes);
    std::memset(static_cast<std::byte*>(copy.target) + copy.source_bytes, 0,
                copy.bytes - copy.source_bytes);
}

void CpAsync::perform_until(const Block& block, int index, std::uint64_t end,
                            const std::string& on) {
    Thread& thread = threads_[std::size_t(index)];
    for (; thread.first < end; ++thread.first) {
        perform(thread.copies.front());
        if (trace::is_on()) note(block, index, thread.copies.front(), on);
        thread.copies.pop_front();
    }
}

void CpAsync::commit(int index) {
    Thread& thread = threads_[std::size_t(index)];
    thread.group_ends.push_back(thread.first + thread.copies.size());
}

void CpAsync::wait(Block& block, unsigned groups) {
    Thread& thread = threads_[std::size_t(block.current())];
    while (thread.group_ends.size() > groups) {
        perform_until(block, block.current(), thread.group_ends.front(), "");
        thread.group_ends.pop_front();
    }
}

void CpAsync::arrive(Block& block, std::uint64_t* barrier, bool counted, Site site) {
    Hopper& hopper = block.hopper();
    observe::release(barrier);
    if (!counted) hopper.mbarriers.expect_one_more(block, barrier, site);
    const int index = block.current();
    const Thread& thread = threads_[std::size_t(index)];
    const std::uint64_t end = thread.first + thread.copies.size();
    const auto land = [this, &block, &hopper, index, end, barrier, site] {
        perform_until(block, index, end, shared_offset(block, barrier));
        hopper.mbarriers.arrive(block, barrier, 1, site);
    };
    if (block.launch().asynchrony.deferred)
        hopper.flights.push_back({site, land});
    else
        land();
}

// --------------------------------------------------------------------------- of a trace
/// A thread's oldest copy is done: a part of its warp's bar, which is written when all
/// lanes are done.
void CpAsync::note(const Block& block, int index, const Copy& copy,
                   const std::string& on) {
    const int warp = index / kWarpSize;
    const BarKey key{warp, threads_[std::size_t(index)].first, copy.site.line};
    Bar& bar = bars_[key];
    bar.begin = bar.lanes == 0 ? copy.issued : std::min(bar.begin, copy.issued);
    bar.end = trace::now(block);
    bar.bytes += copy.bytes;
    bar.site = copy.site;
    bar.on = on;
    if (++bar.lanes < std::min(kWarpSize, block.count() - warp * kWarpSize)) return;
    write(block, warp, bar);
    bars_.erase(key);
}

void CpAsync::write(const Block& block, int warp, const Bar& bar) {
    trace::lasted(block, {trace::Row::copies, 0,
                          "cp.async of warp " + std::to_string(warp) + ", " +
                              std::to_string(bar.bytes) + " bytes",
                          bar.begin, bar.site, bar.on, bar.end});
}

void CpAsync::block_exits(const Block& block) {
    for (const auto& [key, bar] : bars_) write(block, std::get<0>(key), bar);
    bars_.clear();
}

}  // namespace cuda_on_cpu
