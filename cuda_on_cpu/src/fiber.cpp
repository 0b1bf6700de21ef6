#include "fiber.h"

#include <sys/mman.h>

#include <mutex>
#include <new>
#include <vector>

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

/// Stacks of threads that have ended, for those that come: ranks come and go by the
/// thousand in tests, and to map a stack and touch it costs more than to run on it.
class IdleStacks {
  public:
    static IdleStacks& shared() {
        static auto* const stacks = new IdleStacks;  // outlives every thread
        return *stacks;
    }
    std::byte* take() {
        {
            const std::lock_guard lock(mutex_);
            if (!idle_.empty()) {
                std::byte* stack = idle_.back();
                idle_.pop_back();
                return stack;
            }
        }
        // The lowest page stays forbidden: a stack that grows into it faults at once.
        void* memory = mmap(nullptr, kStackBytes + kPage, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        auto* stack = static_cast<std::byte*>(memory) + kPage;
        if (mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0)
            throw std::bad_alloc();
        return stack;
    }
    void give_back(std::byte* stack) {
        {
            const std::lock_guard lock(mutex_);
            if (idle_.size() < kMost) return idle_.push_back(stack);
        }
        munmap(stack - kPage, kStackBytes + kPage);
    }

  private:
    static constexpr std::size_t kMost = 8192;
    std::mutex mutex_;
    std::vector<std::byte*> idle_;
};

}  // namespace

FiberPool::~FiberPool() {
    for (const auto& fiber : all_) {
#ifdef CUDA_ON_CPU_TSAN
        __tsan_destroy_fiber(fiber->tsan_fiber);
#endif
        clear_red_zones(*fiber);
        IdleStacks::shared().give_back(fiber->stack);
    }
}

Fiber& FiberPool::take() {
    if (free_.empty()) return add();
    Fiber& fiber = *free_.back();
    free_.pop_back();
    return fiber;
}

Fiber& FiberPool::add() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = IdleStacks::shared().take();
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
