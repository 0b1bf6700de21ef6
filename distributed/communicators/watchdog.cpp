#include "distributed/communicators/watchdog.h"

#include <unistd.h>

#include "distributed/communicators/agreement.h"

namespace moe::distributed {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPeriod{50};
/// What a rank that left has sent is here by then.
constexpr milliseconds kGrace{1000};
/// What another rank died of is known by then. mpirun waits a second for those that it
/// has sent SIGTERM, and then kills them.
constexpr milliseconds kLastWords{500};

volatile sig_atomic_t told_to_end = 0;

struct sigaction take_sigterm() {
    told_to_end = 0;
    struct sigaction mine = {}, former = {};
    mine.sa_handler = [](int) { told_to_end = 1; };
    mine.sa_flags = SA_RESTART;
    sigaction(SIGTERM, &mine, &former);
    return former;
}

}  // namespace

Watchdog::Watchdog(std::shared_ptr<OpLedger> ledger,
                   std::unique_ptr<ControlConnection> control, milliseconds deadline,
                   std::function<std::string()> transport_error)
    : ledger_(std::move(ledger)),
      control_(std::move(control)),
      deadline_(deadline),
      transport_error_(std::move(transport_error)),
      former_(take_sigterm()),
      thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    sigaction(SIGTERM, &former_, nullptr);
}

void Watchdog::abort(const std::string& reason) {
    gave_up_ = true;
    control_->poison(reason);
    for (const auto start = Clock::now();
         !everybody_knows_ && Clock::now() - start < milliseconds(1000);)
        std::this_thread::sleep_for(milliseconds(1));
}

void Watchdog::leave() {
    control_->leave();
    thread_.join();
}

void Watchdog::run() {
    while (!stop_ && !everybody_knows_) {
        look_at_control();
        if (gave_up_) continue;
        look_at_launcher();
        look_at_operation();
        if (const std::string error = transport_error_ ? transport_error_() : "";
            !error.empty())
            end_process(error);
    }
}

void Watchdog::look_at_control() {
    using Kind = ControlConnection::News::Kind;
    const ControlConnection::News news = control_->wait(kPeriod);
    switch (news.kind) {
        case Kind::none: return;
        case Kind::left:
            left_.insert(news.rank);
            last_left_ = Clock::now();
            return;
        case Kind::all_left: everybody_knows_ = true; return;
        case Kind::poisoned:
        case Kind::lost:
            wait_for_own_words();
            everybody_knows_ = true;
            if (!gave_up_) end_process(news.text);
    }
}

void Watchdog::look_at_launcher() {
    if (told_to_end == 0) return;
    if (told_ == Clock::time_point{}) told_ = Clock::now();
    if (Clock::now() - told_ < kLastWords) return;
    sigaction(SIGTERM, &former_, nullptr);
    raise(SIGTERM);
}

void Watchdog::wait_for_own_words() const {
    for (const auto start = Clock::now();
         !gave_up_ && !ledger_->running() && Clock::now() - start < milliseconds(300);)
        std::this_thread::sleep_for(milliseconds(1));
}

void Watchdog::look_at_operation() {
    const auto running = ledger_->running();
    if (!running) return;
    const auto now = Clock::now();
    if (now - running->start > deadline_)
        end_process(fmt::format("not done within {} ms", deadline_.count()));
    if (now - running->start < kGrace || now - last_left_ < kGrace) return;
    for (int member : running->operation.members)
        if (left_.count(member) > 0 && member != control_->rank())
            end_process(fmt::format("rank {} has ended without it", member));
}

void Watchdog::end_process(const std::string& why) {
    const auto running = ledger_->running();
    const std::string line =
        running
            ? failure_line(control_->rank(), running->operation, why)
            : one_line(fmt::format("rank {}: ended, because {}", control_->rank(), why));
    const std::string text = "moe: " + line + "\n";
    // One write: the lines of several ranks do not mix.
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
    if (!everybody_knows_) {
        control_->poison(why);
        // Rank 0 keeps the server until it has told the others.
        for (const auto start = Clock::now();
             Clock::now() - start < milliseconds(1000);) {
            using Kind = ControlConnection::News::Kind;
            const auto kind = control_->wait(kPeriod).kind;
            if (kind == Kind::poisoned || kind == Kind::lost) break;
        }
    }
    _exit(kExitRanksFailed);
}

}  // namespace moe::distributed
