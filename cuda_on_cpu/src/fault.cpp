#include "fault.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

#include "block.h"
#include "guarded.h"

namespace cuda_on_cpu {
namespace {

// AddressSanitizer's own report names the kernel's line.
#ifdef CUDA_ON_CPU_ASAN
constexpr bool kCatchFaults = false;
#else
constexpr bool kCatchFaults = true;
#endif

thread_local int fault_signal = 0;
thread_local const void* fault_address = nullptr;
thread_local const void* fault_instruction = nullptr;

/// "experts.cu:42" of an instruction, if binutils' addr2line is there to tell; otherwise
/// the function or the address.
std::string find_source_line(const void* instruction) {
    Dl_info info{};
    if (dladdr(instruction, &info) == 0 || info.dli_fname == nullptr)
        return symbol_name(instruction);
    const auto offset = reinterpret_cast<std::uintptr_t>(instruction) -
                        reinterpret_cast<std::uintptr_t>(info.dli_fbase);
    std::array<char, 1024> command{}, line{};
    std::snprintf(command.data(), command.size(), "addr2line -e '%s' 0x%zx 2>/dev/null",
                  info.dli_fname, std::size_t(offset));
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.data(), "r"), pclose);
    std::string text;
    if (pipe && std::fgets(line.data(), line.size(), pipe.get())) text = line.data();
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    text = text.substr(0, text.find(" (discriminator"));
    return text.empty() || text.starts_with("??") ? symbol_name(instruction) : text;
}

/// The same, asked once for each instruction: the same bug faults in many blocks.
std::string source_line(const void* instruction) {
    static std::mutex mutex;
    static std::map<const void*, std::string> known;
    const std::lock_guard lock(mutex);
    const auto [found, is_new] = known.try_emplace(instruction);
    if (is_new) found->second = find_source_line(instruction);
    return found->second;
}

void note_signal(Block& block) {
    const std::string place = source_line(fault_instruction);
    if (fault_signal == SIGFPE)
        return block.note_fault(cudaErrorLaunchFailure, "integer division by zero",
                                place);
    if (block.is_guard(fault_address))
        return block.note_fault(cudaErrorHardwareStackError,
                                "stack overflow: local variables or recursion too large",
                                place);
    char text[80];
    std::snprintf(text, sizeof text, "illegal access to address %p", fault_address);
    const std::string neighbour = describe_forbidden(fault_address);
    block.note_fault(cudaErrorIllegalAddress,
                     text + (neighbour.empty() ? "" : ", " + neighbour), place);
}

/// Where a faulted CUDA thread goes on: on its own stack, outside the signal handler.
[[noreturn]] void land() {
    note_signal(*Block::running());
    Block::running()->abandon();
}

/// What becomes of a signal, here and without us.
struct Handled {
    int signal;
    struct sigaction before = {};
};
std::array<Handled, 3> handled = {{{SIGSEGV}, {SIGBUS}, {SIGFPE}}};

void handle(int signal, siginfo_t* info, void* context) {
    auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
    if (Block::running() == nullptr) {
        // Not a kernel's: it happens again, and the program dies as it would have.
        for (const Handled& each : handled)
            if (each.signal == signal) sigaction(signal, &each.before, nullptr);
        if (info->si_code <= 0) raise(signal);  // it was sent, and no instruction's fault
        return;
    }
    fault_signal = signal;
    fault_address = info->si_addr;
    // Returning from the handler resumes at land(), at the top of the fiber's stack: what
    // lies there belongs to a thread that will never run again.
    auto stack = reinterpret_cast<std::uintptr_t>(Block::running()->landing_stack());
    stack &= ~std::uintptr_t{15};
#if defined(__x86_64__)
    fault_instruction = reinterpret_cast<const void*>(machine.gregs[REG_RIP]);
    machine.gregs[REG_RSP] = greg_t(stack - 8);  // as after a call
    machine.gregs[REG_RIP] = reinterpret_cast<greg_t>(&land);
#elif defined(__aarch64__)
    fault_instruction = reinterpret_cast<const void*>(machine.pc);
    machine.sp = stack;
    machine.pc = reinterpret_cast<std::uintptr_t>(&land);
#else
    (void)machine;
    _Exit(70);
#endif
}

/// A signal handler needs a stack of its own: the thread's may be full.
struct SignalStack {
    SignalStack() : memory(std::make_unique<std::byte[]>(kBytes)) {
        stack_t stack = {};
        stack.ss_sp = memory.get();
        stack.ss_size = kBytes;
        sigaltstack(&stack, nullptr);
    }
    ~SignalStack() {
        stack_t stack = {};
        stack.ss_flags = SS_DISABLE;
        sigaltstack(&stack, nullptr);
    }
    static constexpr std::size_t kBytes = 64 * 1024;
    std::unique_ptr<std::byte[]> memory;
};

}  // namespace

FaultGuard::FaultGuard() {
    if constexpr (!kCatchFaults) return;
    static thread_local const SignalStack stack;
    static std::once_flag installed;
    std::call_once(installed, [] {
        struct sigaction action = {};
        action.sa_sigaction = handle;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (Handled& each : handled) sigaction(each.signal, &action, &each.before);
    });
}

std::string symbol_name(const void* address) {
    Dl_info info{};
    if (dladdr(address, &info) == 0 || info.dli_sname == nullptr) {
        char text[32];
        std::snprintf(text, sizeof text, "%p", address);
        return text;
    }
    int status = 0;
    const std::unique_ptr<char, void (*)(void*)> name(
        abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), std::free);
    return status == 0 ? name.get() : info.dli_sname;
}

}  // namespace cuda_on_cpu

/// What assert() calls. In a kernel it ends the launch, as on a device; elsewhere the
/// program, as ever.
extern "C" [[noreturn]] void __assert_fail(const char* expression, const char* file,
                                           unsigned line, const char* function) noexcept {
    using cuda_on_cpu::Block, cuda_on_cpu::Site;
    if (Block* block = Block::running()) {
        block->note_fault(cudaErrorAssert, std::string("assertion failed: ") + expression,
                          Site{file, int(line)});
        block->abandon();
    }
    std::fprintf(stderr, "%s:%u: %s: Assertion `%s' failed.\n", file, line, function,
                 expression);
    std::abort();
}
