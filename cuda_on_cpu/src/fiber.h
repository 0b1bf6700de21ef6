/// @file
/// Fibers: stacks that take turns on one CPU thread. Switching is Boost.Context's; this
/// adds stacks with guard pages, clean ends for debuggers, and word to AddressSanitizer
/// and ThreadSanitizer.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <memory>
#include <vector>

#include "cuda_on_cpu/sanitizers.h"

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef CUDA_ON_CPU_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {

/// One stack and where it stopped.
struct Fiber {
    boost::context::detail::fcontext_t context = nullptr;
    std::byte* stack = nullptr;  ///< lowest usable byte
    std::size_t size = 0;
    void* fake_stack = nullptr;  ///< AddressSanitizer's
    void* tsan_fiber = nullptr;  ///< ThreadSanitizer's; of the CPU thread itself too
};

/// Leaves `from` and goes on with `to`. Returns when somebody switches back.
inline void switch_fiber(Fiber& from, Fiber& to) {
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
#ifdef CUDA_ON_CPU_TSAN
    // Fibers of a CPU thread run one at a time: each switch orders what came before it.
    // Races between CPU threads stay visible, races inside a block do not.
    if (from.tsan_fiber == nullptr) from.tsan_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to.tsan_fiber, 0);
#endif
    const auto back = boost::context::detail::jump_fcontext(to.context, &from);
    static_cast<Fiber*>(back.data)->context = back.fctx;
#ifdef CUDA_ON_CPU_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// The fibers of one CPU thread. They live as long as the thread; none ever moves to
/// another one, because compilers keep addresses of thread_local objects across calls.
class FiberPool {
  public:
    /// @param body  runs on each fiber; must never return
    explicit FiberPool(void (*body)()) : body_(body) {}
    ~FiberPool();
    FiberPool(const FiberPool&) = delete;
    FiberPool& operator=(const FiberPool&) = delete;

    Fiber& take();
    void give_back(Fiber& fiber) { free_.push_back(&fiber); }
    /// Forgets what all fibers were doing: after a failed launch.
    void restart_all();
    /// True when the address lies in a guard page: a stack overflow.
    bool is_guard(const void* address) const;

  private:
    Fiber& add();
    void start(Fiber& fiber, std::size_t index);
    static void entry(boost::context::detail::transfer_t from);

    void (*body_)();
    std::vector<std::unique_ptr<Fiber>> all_;
    std::vector<Fiber*> free_;
};

}  // namespace cuda_on_cpu
