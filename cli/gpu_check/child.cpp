// child.cpp: start, wait, stop. After fork() the child may only do what is safe beside
// threads that no longer exist, so all its words are laid out before.

#include "cli/gpu_check/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "cli/gpu_check/descendants.h"
#include "core/error.h"

namespace moe::gpu_check {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr double kGrace = 1.0;     // seconds between SIGTERM and SIGKILL
constexpr double kPatience = 5.0;  // for a process that even SIGKILL does not end at once

volatile sig_atomic_t stop_signal = 0;
constexpr int kStopSignals[] = {SIGINT, SIGTERM, SIGHUP};
struct sigaction previous_actions[std::size(kStopSignals)];

/// A file descriptor that closes itself.
class Descriptor {
  public:
    explicit Descriptor(int number) : number_(number) {}
    ~Descriptor() { close(); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return number_; }
    void close() {
        if (number_ >= 0) ::close(number_);
        number_ = -1;
    }

  private:
    int number_;
};

/// A file that did not exist before; without a name: nowhere.
int create_file(const std::string& path) {
    const int file =
        path.empty() ? open("/dev/null", O_WRONLY | O_CLOEXEC)
                     : open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0) reject("file", path, std::strerror(errno));
    return file;
}

/// In the child: a session of its own, its files, then the program. Tells `failure` its
/// errno when there is no such program.
[[noreturn]] void become(char* const* arguments, int input, int output, int log,
                         int failure, pid_t parent) {
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);  // it has died already
    dup2(input, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(arguments[0], arguments);
    const int error = errno;
    [[maybe_unused]] const ssize_t ignored = write(failure, &error, sizeof error);
    _exit(127);
}

/// True when the child has ended; it stays a zombie, so that its group keeps its number.
bool has_ended(pid_t child) {
    siginfo_t info{};
    return waitid(P_PID, id_t(child), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == child;
}

/// Waits for the end, at most until `seconds` after `start`, and not on once the user
/// stops us.
bool wait_for(pid_t child, Clock::time_point start, double seconds,
              const std::function<void(double)>& tick) {
    while (!has_ended(child)) {
        const double so_far = seconds_since(start);
        if (so_far >= seconds || interrupted()) return false;
        tick(so_far);
        std::this_thread::sleep_for(kPoll);
    }
    return true;
}

/// A word first, then force.
void stop(pid_t child) {
    const auto wait = [child](double seconds) {
        const auto start = Clock::now();
        while (!has_ended(child) && seconds_since(start) < seconds)
            std::this_thread::sleep_for(kPoll);
    };
    kill(-child, SIGTERM);
    wait(kGrace);
    kill(-child, SIGKILL);
    wait(kPatience);
}

Ending judge(int status) {
    return WIFSIGNALED(status) ? Ending{Ending::Kind::signalled, WTERMSIG(status)}
                               : Ending{Ending::Kind::exited, WEXITSTATUS(status)};
}

}  // namespace

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string in_words(const Ending& ending) {
    switch (ending.kind) {
        case Ending::Kind::exited: return fmt::format("exit code {}", ending.code);
        case Ending::Kind::signalled:
            return fmt::format("ended by a signal: {}", strsignal(ending.code));
        case Ending::Kind::over_budget:
            return fmt::format("stopped after {:.0f} s", ending.seconds);
        case Ending::Kind::interrupted: return "interrupted";
        case Ending::Kind::not_started: break;
    }
    return fmt::format("could not be started: {}", std::strerror(ending.code));
}

Ending run_child(const Program& program, double budget,
                 const std::function<void(double)>& tick) {
    const Descriptor input(open("/dev/null", O_RDONLY | O_CLOEXEC));
    const Descriptor log(create_file(program.log));
    const Descriptor output(program.output.empty() ? fcntl(log.get(), F_DUPFD_CLOEXEC, 0)
                                                   : create_file(program.output));
    int failure[2];
    if (pipe2(failure, O_CLOEXEC) != 0) reject("pipe", "none", std::strerror(errno));
    const Descriptor failure_out(failure[0]);
    Descriptor failure_in(failure[1]);
    std::vector<char*> arguments;
    for (const std::string& argument : program.arguments)
        arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);

    const Descendants descendants;  // those that lose their parent become ours
    const auto start = Clock::now();
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child < 0) return {Ending::Kind::not_started, errno, 0.0};
    if (child == 0)
        become(arguments.data(), input.get(), output.get(), log.get(), failure[1],
               parent);
    failure_in.close();

    const bool ended = wait_for(child, start, budget, tick);
    const double seconds = seconds_since(start);
    if (ended)
        kill(-child, SIGKILL);  // whom it left behind
    else
        stop(child);
    int status = 0, error = 0;
    const bool collected = waitpid(child, &status, WNOHANG) == child;
    descendants.end();

    Ending ending = !ended && interrupted() ? Ending{Ending::Kind::interrupted}
                    : !ended || !collected  ? Ending{Ending::Kind::over_budget}
                                            : judge(status);
    // An empty pipe is closed by exec(), or by the child's end.
    if (ended && read(failure_out.get(), &error, sizeof error) == sizeof error)
        ending = {Ending::Kind::not_started, error};
    ending.seconds = seconds;
    return ending;
}

InterruptGuard::InterruptGuard() {
    stop_signal = 0;
    struct sigaction action {};
    action.sa_handler = [](int number) { stop_signal = number; };
    for (std::size_t i = 0; i < std::size(kStopSignals); ++i) {
        sigaction(kStopSignals[i], &action, &previous_actions[i]);
        if (previous_actions[i].sa_handler == SIG_IGN)  // as under nohup
            sigaction(kStopSignals[i], &previous_actions[i], nullptr);
    }
}

InterruptGuard::~InterruptGuard() {
    for (std::size_t i = 0; i < std::size(kStopSignals); ++i)
        sigaction(kStopSignals[i], &previous_actions[i], nullptr);
}

bool interrupted() {
    return stop_signal != 0;
}

}  // namespace moe::gpu_check
