/// @file
/// The accesses of a block's threads, as the compiler's calls bring them: each thread
/// fills a list of its own, and when the lanes of a warp meet, their lists are read.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "block.h"

namespace cuda_on_cpu::observe {

enum class Kind : std::uint8_t { read, write, atomic, atomic_read, atomic_write };

inline bool writes(Kind kind) {
    return kind == Kind::write || kind == Kind::atomic || kind == Kind::atomic_write;
}
inline bool reads(Kind kind) {
    return kind == Kind::read || kind == Kind::atomic || kind == Kind::atomic_read;
}
inline const char* name_of(Kind kind) {
    return kind == Kind::read ? "read" : kind == Kind::write ? "write" : "atomic access";
}
inline bool is_atomic(Kind kind) {
    return kind >= Kind::atomic;
}

/// One access of one thread.
struct Record {
    std::uint64_t place;  ///< address in 48 bits, size in 8, kind in 8
    std::uint64_t pc;     ///< where the call returns to

    std::uint64_t address() const { return place & 0xffff'ffff'ffffu; }
    unsigned size() const { return place >> 48 & 0xff; }
    Kind kind() const { return Kind(place >> 56); }
};

/// What a thread did since its warp last met.
struct Lane {
    Record *begin = nullptr, *end = nullptr, *limit = nullptr;
};

/// Whose accesses come in on this CPU thread, and what of them is of no interest: the
/// thread's own stack, and threadIdx with its family.
struct Running {
    Lane* lane = nullptr;  ///< null outside kernels
    std::uint64_t stack_low = 0, stack_size = 0;
    std::uint64_t builtins_low = 0, builtins_size = 0;
    Lane arriving;  ///< always full: stands in for a lane whose stack is not known yet
    Lane* next = nullptr;
    Lanes* block = nullptr;
};
extern constinit thread_local Running running;

/// The lists of one block at a time, and who is whose neighbour.
class Lanes {
  public:
    Lanes();
    ~Lanes();
    void begin(Launch& launch, std::int64_t index, const std::byte* arena);
    void end();
    void run(int thread);
    void open_barrier();
    void meet(int warp, unsigned mask);
    void exit(int thread, unsigned live);

    Lane& lane(int thread) { return lanes_[thread]; }
    int running_thread() const { return int(running.next - lanes_.data()); }
    /// Twice the room, or the first.
    static void grow(Lane& lane);

    Launch& launch() const { return *launch_; }
    bool is_shared(std::uint64_t address) const { return address - arena_ < kMaxShared; }
    std::uint64_t arena() const { return arena_; }
    /// The launch's arguments: constant memory on a GPU.
    bool is_argument(std::uint64_t address) const {
        const KernelCall& call = launch_->call;
        return address - reinterpret_cast<std::uint64_t>(call.arguments) <
               call.argument_bytes;
    }
    /// Ends the launch with this story, unless it has failed already.
    void fail(const std::string& story);
    /// The lanes that a warp of this block has.
    unsigned lanes_of(int warp) const;
    /// "block (0,1,0), thread (33,0,0)"
    std::string name_of(int thread) const;

  private:
    static constexpr std::uint64_t kMaxShared = kMaxSharedMemory;

    /// Reads the lists of these lanes, and empties them.
    void read(int warp, unsigned mask);

    std::array<Lane, kMaxThreads> lanes_;
    std::array<bool, kMaxThreads> exited_{};
    Launch* launch_ = nullptr;
    std::int64_t index_ = 0;
    std::uint64_t arena_ = 0;
    int count_ = 0;
};

}  // namespace cuda_on_cpu::observe
