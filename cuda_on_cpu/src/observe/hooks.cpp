// hooks.cpp: the functions that the compiler calls at every load and store of a file
// compiled with -fsanitize=thread. ThreadSanitizer's own are not linked; these note what
// was touched, from which instruction.

#include "observe/lanes.h"

namespace cuda_on_cpu::observe {

constinit thread_local Running running __attribute__((tls_model("initial-exec")));

namespace {

/// The list is full, or the thread has only just begun to run here.
[[gnu::noinline]] void note_slowly(std::uint64_t address, unsigned size, Kind kind,
                                   const void* pc);

// TUTORIAL: this runs at every load and store, so it decides nothing but whether the
// address can matter. What the accesses of a warp mean is worked out when its lanes meet.
[[gnu::always_inline]] inline void note(const void* pointer, unsigned size, Kind kind,
                                        const void* pc) {
    Running& now = running;
    if (now.lane == nullptr) return;
    const auto address = reinterpret_cast<std::uint64_t>(pointer);
    if (address - now.stack_low < now.stack_size) return;
    if (address - now.builtins_low < now.builtins_size) return;
    Lane& lane = *now.lane;
    Record* at = lane.end;
    if (at == lane.limit) [[unlikely]]
        return note_slowly(address, size, kind, pc);
    *at = Record::of(address, size, kind, reinterpret_cast<std::uint64_t>(pc));
    lane.end = at + 1;
}

void note_slowly(std::uint64_t address, unsigned size, Kind kind, const void* pc) {
    Running& now = running;
    if (now.lane == &now.arriving) {
        const Fiber& fiber = Block::running()->running_fiber();
        now.stack_low = reinterpret_cast<std::uint64_t>(fiber.stack);
        now.stack_size = fiber.size;
        now.lane = now.next;
    } else {
        Lanes::grow(*now.lane);
    }
    note(reinterpret_cast<const void*>(address), size, kind, pc);
}

/// Hardware moves at most 16 bytes in one instruction.
void note_range(const void* pointer, std::size_t bytes, Kind kind, const void* pc) {
    const auto* at = static_cast<const std::byte*>(pointer);
    for (; bytes > 16; bytes -= 16, at += 16) note(at, 16, kind, pc);
    if (bytes > 0) note(at, unsigned(bytes), kind, pc);
}

/// An atomic function is a load and a compare-exchange here, on a GPU one instruction.
void note_exchange(const void* pointer, unsigned size, const void* pc) {
    Running& now = running;
    if (now.lane == nullptr) return;
    Lane& lane = *now.lane;
    if (now.first_half != nullptr && lane.end - 1 == now.first_half &&
        now.first_half->address() == reinterpret_cast<std::uint64_t>(pointer))
        --lane.end;
    now.first_half = nullptr;
    note(pointer, size, Kind::atomic, pc);
}

void note_load(const void* pointer, unsigned size, int order, const void* pc) {
    note(pointer, size, Kind::atomic_read, pc);
    Running& now = running;
    if (now.lane == nullptr) return;
    now.first_half = order == __ATOMIC_RELAXED ? now.lane->end - 1 : nullptr;
}

/// What an atomic access says about the order of others; after it was noted.
void order_others(const void* pointer, int order, bool reads, bool writes) {
    if (running.lane != nullptr && running.races)
        running.block->order_others(reinterpret_cast<std::uint64_t>(pointer), order,
                                    reads, writes);
}

}  // namespace
}  // namespace cuda_on_cpu::observe

using namespace cuda_on_cpu::observe;

#define PC __builtin_return_address(0)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_ignore_thread_begin() {}
void __tsan_ignore_thread_end() {}

#define ACCESS(bytes)                             \
    void __tsan_read##bytes(void* p) {            \
        note(p, bytes, Kind::read, PC);           \
    }                                             \
    void __tsan_write##bytes(void* p) {           \
        note(p, bytes, Kind::write, PC);          \
    }                                             \
    void __tsan_unaligned_read##bytes(void* p) {  \
        note(p, bytes, Kind::read, PC);           \
    }                                             \
    void __tsan_unaligned_write##bytes(void* p) { \
        note(p, bytes, Kind::write, PC);          \
    }                                             \
    void __tsan_volatile_read##bytes(void* p) {   \
        note(p, bytes, Kind::read, PC);           \
    }                                             \
    void __tsan_volatile_write##bytes(void* p) {  \
        note(p, bytes, Kind::write, PC);          \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(void* p, std::size_t bytes) {
    note_range(p, bytes, Kind::read, PC);
}
void __tsan_write_range(void* p, std::size_t bytes) {
    note_range(p, bytes, Kind::write, PC);
}

#define UPDATE(bits, Word, name)                                             \
    Word __tsan_atomic##bits##_##name(volatile Word* p, Word v, int order) { \
        note(const_cast<Word*>(p), bits / 8, Kind::atomic, PC);              \
        order_others(const_cast<Word*>(p), order, true, true);               \
        return __atomic_##name(p, v, __ATOMIC_SEQ_CST);                      \
    }
#define EXCHANGE(bits, Word, name, weak)                                           \
    int __tsan_atomic##bits##_##name(volatile Word* p, Word* expected, Word v,     \
                                     int order, int) {                             \
        note_exchange(const_cast<Word*>(p), bits / 8, PC);                         \
        order_others(const_cast<Word*>(p), order, true, true);                     \
        return __atomic_compare_exchange_n(p, expected, v, weak, __ATOMIC_SEQ_CST, \
                                           __ATOMIC_SEQ_CST);                      \
    }
#define ATOMICS(bits, Word)                                                          \
    Word __tsan_atomic##bits##_load(const volatile Word* p, int order) {             \
        note_load(const_cast<const Word*>(p), bits / 8, order, PC);                  \
        /* First: another rank may release while this one looks */                   \
        const Word value = __atomic_load_n(p, __ATOMIC_SEQ_CST);                     \
        order_others(const_cast<const Word*>(p), order, true, false);                \
        return value;                                                                \
    }                                                                                \
    void __tsan_atomic##bits##_store(volatile Word* p, Word v, int order) {          \
        note(const_cast<Word*>(p), bits / 8, Kind::atomic_write, PC);                \
        order_others(const_cast<Word*>(p), order, false, true);                      \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                    \
    }                                                                                \
    Word __tsan_atomic##bits##_exchange(volatile Word* p, Word v, int order) {       \
        note(const_cast<Word*>(p), bits / 8, Kind::atomic, PC);                      \
        order_others(const_cast<Word*>(p), order, true, true);                       \
        return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                          \
    }                                                                                \
    Word __tsan_atomic##bits##_compare_exchange_val(volatile Word* p, Word expected, \
                                                    Word v, int order, int) {        \
        note_exchange(const_cast<Word*>(p), bits / 8, PC);                           \
        order_others(const_cast<Word*>(p), order, true, true);                       \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST,        \
                                    __ATOMIC_SEQ_CST);                               \
        return expected;                                                             \
    }                                                                                \
    EXCHANGE(bits, Word, compare_exchange_strong, false)                             \
    EXCHANGE(bits, Word, compare_exchange_weak, true)                                \
    UPDATE(bits, Word, fetch_add)                                                    \
    UPDATE(bits, Word, fetch_sub)                                                    \
    UPDATE(bits, Word, fetch_and)                                                    \
    UPDATE(bits, Word, fetch_or)                                                     \
    UPDATE(bits, Word, fetch_xor)                                                    \
    UPDATE(bits, Word, fetch_nand)
ATOMICS(8, std::uint8_t)
ATOMICS(16, std::uint16_t)
ATOMICS(32, std::uint32_t)
ATOMICS(64, std::uint64_t)
#undef ATOMICS
#undef EXCHANGE
#undef UPDATE

void __tsan_atomic_thread_fence(int) {
    fence();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
