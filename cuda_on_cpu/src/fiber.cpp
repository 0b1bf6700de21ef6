#include "fiber.h"

#include <sys/mman.h>

#include <new>

#include "page.h"

namespace cuda_on_cpu {
namespace {

// The sanitizers' frames and those without optimisation are several times as large.
#if defined(CUDA_ON_CPU_ASAN) || defined(CUDA_ON_CPU_TSAN)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

thread_local void (*starting_body)() = nullptr;

/// Frames that never return leave AddressSanitizer's red zones behind, also for whoever
/// gets the same addresses next.
void clear_red_zones([[maybe_unused]] const Fiber& fiber) {
#ifdef CUDA_ON_CPU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, fiber.size);
#endif
}

}  // namespace

FiberPool::~FiberPool() {
    for (const auto& fiber : all_) {
#ifdef CUDA_ON_CPU_TSAN
        __tsan_destroy_fiber(fiber->tsan_fiber);
#endif
        clear_red_zones(*fiber);
        munmap(fiber->stack - kPage, kStackBytes + kPage);
    }
}

Fiber& FiberPool::take() {
    if (free_.empty()) return add();
    Fiber& fiber = *free_.back();
    free_.pop_back();
    return fiber;
}

Fiber& FiberPool::add() {
    // The lowest page stays forbidden: a stack that grows into it faults at once.
    void* memory = mmap(nullptr, kStackBytes + kPage, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    auto* stack = static_cast<std::byte*>(memory) + kPage;
    if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = stack;
    fiber->size = kStackBytes;
    start(*fiber, all_.size());
    all_.push_back(std::move(fiber));
    return *all_.back();
}

void FiberPool::start(Fiber& fiber, std::size_t index) {
    clear_red_zones(fiber);
    // Tops at equal offsets in their pages would compete for the same cache sets.
    const std::size_t stagger = (index * 5 % 64) * 64;
    fiber.context = boost::context::detail::make_fcontext(
        fiber.stack + kStackBytes - stagger, kStackBytes - stagger, entry);
    fiber.fake_stack = nullptr;
#ifdef CUDA_ON_CPU_TSAN
    if (fiber.tsan_fiber != nullptr) __tsan_destroy_fiber(fiber.tsan_fiber);
    fiber.tsan_fiber = __tsan_create_fiber(0);
#endif
    starting_body = body_;
}

void FiberPool::entry(boost::context::detail::transfer_t from) {
    // Debuggers end their backtrace here: nobody called this function.
#if defined(__x86_64__)
    asm volatile(".cfi_undefined rip");
#elif defined(__aarch64__)
    asm volatile(".cfi_undefined x30");
#endif
    auto* previous = static_cast<Fiber*>(from.data);
    previous->context = from.fctx;
#ifdef CUDA_ON_CPU_ASAN
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (previous->stack ==
        nullptr) {  // the CPU thread's own stack, seen for the first time
        previous->stack = static_cast<std::byte*>(const_cast<void*>(bottom));
        previous->size = size;
    }
#endif
    starting_body();
}

void FiberPool::restart_all() {
    free_.clear();
    for (std::size_t i = 0; i < all_.size(); ++i) {
        start(*all_[i], i);
        free_.push_back(all_[i].get());
    }
}

bool FiberPool::is_guard(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    for (const auto& fiber : all_)
        if (byte >= fiber->stack - kPage && byte < fiber->stack) return true;
    return false;
}

}  // namespace cuda_on_cpu
