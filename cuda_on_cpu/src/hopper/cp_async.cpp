// cp_async.cpp: small copies in groups.

#include "hopper/cp_async.h"

#include <cstring>

#include "cuda_on_cpu/observe_instructions.h"
#include "hopper/hopper.h"

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
    const Copy copy{target, source, bytes, source_bytes};
    observe::lane_access(block.current(), source, source_bytes, false, site);
    observe::lane_access(block.current(), target, bytes, true, site);
    if (block.launch().asynchrony.deferred) {
        std::memset(target, 0xFF, bytes);  // what is there now must not be read
        thread.copies.push_back(copy);
    } else {
        perform(copy);
        ++thread.first;
    }
}

void CpAsync::perform(const Copy& copy) {
    if (copy.source_bytes > 0) std::memcpy(copy.target, copy.source, copy.source_bytes);
    std::memset(static_cast<std::byte*>(copy.target) + copy.source_bytes, 0,
                copy.bytes - copy.source_bytes);
}

void CpAsync::perform_until(Thread& thread, std::uint64_t end) {
    for (; thread.first < end; ++thread.first) {
        perform(thread.copies.front());
        thread.copies.pop_front();
    }
}

void CpAsync::commit(int index) {
    Thread& thread = threads_[std::size_t(index)];
    thread.group_ends.push_back(thread.first + thread.copies.size());
}

void CpAsync::wait(int index, unsigned groups) {
    Thread& thread = threads_[std::size_t(index)];
    while (thread.group_ends.size() > groups) {
        perform_until(thread, thread.group_ends.front());
        thread.group_ends.pop_front();
    }
}

void CpAsync::arrive(Block& block, std::uint64_t* barrier, bool counted, Site site) {
    Hopper& hopper = block.hopper();
    observe::release(barrier);
    if (!counted) hopper.mbarriers.expect_one_more(block, barrier, site);
    Thread& thread = threads_[std::size_t(block.current())];
    const std::uint64_t end = thread.first + thread.copies.size();
    const auto land = [&block, &hopper, &thread, end, barrier, site] {
        perform_until(thread, end);
        hopper.mbarriers.arrive(block, barrier, 1, site);
    };
    if (block.launch().asynchrony.deferred)
        hopper.flights.push_back({site, land});
    else
        land();
}

}  // namespace cuda_on_cpu
