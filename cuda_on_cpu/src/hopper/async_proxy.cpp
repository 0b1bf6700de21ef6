// async_proxy.cpp: shared memory as the asynchronous proxy sees it.

#include "hopper/async_proxy.h"

#include <cstring>

#include "hopper/hopper.h"

namespace cuda_on_cpu {

const char* to_string(Swizzle swizzle) {
    const char* names[] = {"no swizzle", "32-byte swizzle", "64-byte swizzle",
                           "128-byte swizzle"};
    return names[int(swizzle)];
}

void AsyncProxy::begin(const Block& block) {
    block_ = &block;
    bytes_ = block.launch().smem;
    seen_.assign(bytes_, std::byte{0xFF});  // as the block found it
    swizzles_.assign(bytes_ / kLine + 1, 0);
}

void AsyncProxy::look() {
    ++looks_;
    // Most is as it was: big steps first.
    constexpr std::size_t kStep = 32 * kLine;
    const std::byte* arena = block_->arena();
    const auto is_new = [&](std::size_t at, std::size_t most) {
        return std::memcmp(&seen_[at], arena + at, std::min(most, bytes_ - at)) != 0;
    };
    for (std::size_t step = 0; step < bytes_; step += kStep) {
        if (!is_new(step, kStep)) continue;
        for (std::size_t at = step; at < std::min(step + kStep, bytes_); at += kLine) {
            if (!is_new(at, kLine)) continue;
            std::memcpy(&seen_[at], arena + at, std::min(kLine, bytes_ - at));
            swizzles_[at / kLine] = 0;
        }
    }
}

void AsyncProxy::wrote(std::size_t position, std::size_t bytes) {
    std::memcpy(&seen_[position], block_->arena() + position, bytes);
}

void AsyncProxy::check_read(const char* what, std::size_t position, std::size_t bytes,
                            Site site) const {
    const std::byte* arena = block_->arena();
    if (std::memcmp(&seen_[position], arena + position, bytes) == 0) return;
    while (seen_[position] == arena[position]) ++position;
    throw Fault{std::string(what) + " reads shared memory at " +
                    shared_offset(*block_, arena + position) +
                    ", which was stored to by a thread: fence_proxy_async must come "
                    "between, by the thread that stored",
                site};
}

void AsyncProxy::check_swizzle(const char* what, std::size_t position, Swizzle swizzle,
                               Site site) const {
    const int loaded = swizzles_[position / kLine] - 1;
    if (loaded < 0 || loaded == int(swizzle)) return;
    throw Fault{std::string(what) + ": the descriptor says " + to_string(swizzle) +
                    ", but its tile at " +
                    shared_offset(*block_, block_->arena() + position) +
                    " was loaded with " + to_string(Swizzle(loaded)),
                site};
}

}  // namespace cuda_on_cpu
