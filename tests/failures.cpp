// failures.cpp: GoogleTest's own printer, held back where it would drown what matters.

#include "tests/failures.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

namespace moe::test {
namespace {

constexpr int kMostFailures = 3;           // that are shown, of one test
constexpr int kMostTests = 20;             // whose failures are shown
constexpr std::size_t kMostBytes = 3'000;  // of one failure's message

// ------------------------------------------------------------------------- crashes
// What a signal handler may read: plain memory, written before. Longer names are cut.
const char* command = "";
std::array<char, 256> running = {};  // nothing: outside of every test

void set_running(const std::string& name) {
    const std::size_t length = std::min(name.size(), running.size() - 1);
    std::memcpy(running.data(), name.data(), length);
    running[length] = '\0';
}

struct Crash {
    int number;
    const char* name;
    struct sigaction before = {};  // a sanitizer's, mostly the system's
};
std::array<Crash, 5> crashes = {{{SIGSEGV, "SIGSEGV"},
                                 {SIGBUS, "SIGBUS"},
                                 {SIGFPE, "SIGFPE"},
                                 {SIGILL, "SIGILL"},
                                 {SIGABRT, "SIGABRT"}}};

/// write(), which a signal handler may call, unlike printf().
void say(const char* text) {
    for (std::size_t left = std::strlen(text); left > 0;) {
        const ssize_t written = write(STDERR_FILENO, text, left);
        if (written <= 0) return;
        text += written;
        left -= std::size_t(written);
    }
}

void on_crash(int number, siginfo_t* info, void*) {
    for (const Crash& crash : crashes) {
        if (crash.number != number) continue;
        const char* name = running.data();
        for (const char* text :
             {"\n[ CRASHED  ] ", *name ? name : "outside of every test", ": ", crash.name,
              "\n"})
            say(text);
        if (*name)
            for (const char* text :
                 {"To run it again: ", command, " --gtest_filter=", name, "\n"})
                say(text);
        sigaction(number, &crash.before, nullptr);
    }
    // A fault happens again when the instruction does; what was sent must be sent again.
    if (info->si_code <= 0) raise(number);
}

void name_crashes() {
    // A test whose stack is full cannot be named on it.
    static std::array<std::byte, 64 * 1024> stack;
    stack_t alternative = {};
    if (sigaltstack(nullptr, &alternative) == 0 && alternative.ss_flags & SS_DISABLE) {
        alternative = {.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
        sigaltstack(&alternative, nullptr);
    }
    struct sigaction action = {};
    action.sa_sigaction = on_crash;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (Crash& crash : crashes) sigaction(crash.number, &action, &crash.before);
}

// ------------------------------------------------------------------------ failures
std::string full_name(const testing::TestInfo& test) {
    return std::string(test.test_suite_name()) + "." + test.name();
}

/// Whether the variable is set; programs that tests start do not see it.
bool take_environment(const char* name) {
    const bool set = std::getenv(name) != nullptr;
    unsetenv(name);
    return set;
}

/// The message, cut where no character is torn.
testing::TestPartResult shortened(const testing::TestPartResult& result) {
    const std::string_view message = result.message();
    if (message.size() <= kMostBytes) return result;
    std::size_t end = kMostBytes;
    while ((static_cast<unsigned char>(message[end]) & 0xc0) == 0x80) --end;
    const std::string text = std::string(message.substr(0, end)) + " …";
    return {result.type(), result.file_name(), result.line_number(), text.c_str()};
}

/// Prints through another printer, but not every failure; at the end, names.
class FailureListener : public testing::TestEventListener {
  public:
    explicit FailureListener(testing::TestEventListener* printer) : printer_(printer) {}

    void OnTestProgramStart(const testing::UnitTest& all) override {
        // GoogleTest has chosen by now; programs that tests start have no shards.
        unsetenv("GTEST_TOTAL_SHARDS");
        unsetenv("GTEST_SHARD_INDEX");
        printer_->OnTestProgramStart(all);
    }
    void OnTestIterationStart(const testing::UnitTest& all, int iteration) override {
        failed_tests_ = 0;
        printer_->OnTestIterationStart(all, iteration);
        tell("to run " + std::to_string(all.test_to_run_count()));
    }
    void OnEnvironmentsSetUpStart(const testing::UnitTest& all) override {
        printer_->OnEnvironmentsSetUpStart(all);
    }
    void OnEnvironmentsSetUpEnd(const testing::UnitTest& all) override {
        printer_->OnEnvironmentsSetUpEnd(all);
    }
    void OnTestSuiteStart(const testing::TestSuite& suite) override {
        set_running(std::string(suite.name()) + ".*");
        failures_ = 0;
        printer_->OnTestSuiteStart(suite);
    }
    void OnTestStart(const testing::TestInfo& test) override {
        set_running(full_name(test));
        failures_ = 0;
        printer_->OnTestStart(test);
    }
    void OnTestDisabled(const testing::TestInfo& test) override {
        printer_->OnTestDisabled(test);
    }
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (!result.failed()) return printer_->OnTestPartResult(result);
        if (++failures_ <= kMostFailures && failed_tests_ < kMostTests)
            printer_->OnTestPartResult(shortened(result));
    }
    void OnTestEnd(const testing::TestInfo& test) override {
        if (failures_ > kMostFailures && failed_tests_ < kMostTests)
            std::printf("… and %lld more failures of this test\n",
                        failures_ - kMostFailures);
        printer_->OnTestEnd(test);
        if (test.result()->Failed() && ++failed_tests_ == kMostTests)
            std::printf("… of the tests that fail after these %d, only the names\n",
                        kMostTests);
        set_running(std::string(test.test_suite_name()) + ".*");
        tell("ended a test");
    }
    void OnTestSuiteEnd(const testing::TestSuite& suite) override {
        printer_->OnTestSuiteEnd(suite);
        set_running("");
    }
#ifndef GTEST_REMOVE_LEGACY_TEST_CASEAPI_  // which the printer may use
    void OnTestCaseStart(const testing::TestSuite& suite) override {
        printer_->OnTestCaseStart(suite);
    }
    void OnTestCaseEnd(const testing::TestSuite& suite) override {
        printer_->OnTestCaseEnd(suite);
    }
#endif
    void OnEnvironmentsTearDownStart(const testing::UnitTest& all) override {
        printer_->OnEnvironmentsTearDownStart(all);
    }
    void OnEnvironmentsTearDownEnd(const testing::UnitTest& all) override {
        printer_->OnEnvironmentsTearDownEnd(all);
    }
    void OnTestIterationEnd(const testing::UnitTest& all, int iteration) override {
        if (is_shard_) return tell_result(all);
        printer_->OnTestIterationEnd(all, iteration);
        if (all.Failed()) print_failed(all);
        std::fflush(stdout);
    }
    void OnTestProgramEnd(const testing::UnitTest& all) override {
        printer_->OnTestProgramEnd(all);
    }

  private:
    /// A line for who puts shards together.
    void tell(const std::string& words) const {
        if (!is_shard_) return;
        std::printf("moe-shard %s\n", words.c_str());
        std::fflush(stdout);
    }
    void tell_result(const testing::UnitTest& all) const {
        tell("passed " + std::to_string(all.successful_test_count()));
        tell("skipped " + std::to_string(all.skipped_test_count()));
        for_each_failed(all, [&](const std::string& name, const char* where) {
            tell("failed " + name + where);
        });
    }

    /// Failed tests, and suites that failed outside of their tests.
    template <typename Print>
    static void for_each_failed(const testing::UnitTest& all, Print print) {
        for (int i = 0; i < all.total_test_suite_count(); ++i) {
            const testing::TestSuite& suite = *all.GetTestSuite(i);
            for (int j = 0; j < suite.total_test_count(); ++j)
                if (const testing::TestInfo& test = *suite.GetTestInfo(j);
                    test.result()->Failed())
                    print(full_name(test), "");
            if (suite.ad_hoc_test_result().Failed())
                print(std::string(suite.name()) + ".*", ": before or after its tests");
        }
        if (all.ad_hoc_test_result().Failed()) print("*", ": before or after all tests");
    }

    static void print_failed(const testing::UnitTest& all) {
        std::string first;
        const auto print = [&](const std::string& name, const char* where) {
            if (first.empty()) first = name;
            // The printer that is not brief lists them itself.
            if (GTEST_FLAG_GET(brief))
                std::printf("[  FAILED  ] %s%s\n", name.c_str(), where);
        };
        for_each_failed(all, print);
        const int count = all.failed_test_count();
        std::printf("%d test%s failed. To run one again: %s --gtest_filter=%s\n", count,
                    count == 1 ? "" : "s", command, first.c_str());
    }

    std::unique_ptr<testing::TestEventListener> printer_;
    const bool is_shard_ = take_environment("MOE_TEST_SHARD");
    long long failures_ = 0;  // of the test, or the suite, that runs
    int failed_tests_ = 0;
};

}  // namespace

void report_failures(const char* program) {
    if (testing::internal::InDeathTestChild()) return;
    const char* chosen = std::getenv("MOE_TEST_COMMAND");
    command = chosen != nullptr ? chosen : program;
    name_crashes();
    testing::TestEventListeners& listeners =
        testing::UnitTest::GetInstance()->listeners();
    listeners.Append(
        new FailureListener(listeners.Release(listeners.default_result_printer())));
}

}  // namespace moe::test
