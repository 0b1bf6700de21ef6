// spawn.cpp: one process becomes many, which die with it.

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "distributed/communicators/watchdog.h"
#include "distributed/launch/launch.h"
#include "distributed/launch/socket.h"

namespace moe::distributed {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr const char* kSpawnedBy = "MOE_SPAWNED";
constexpr milliseconds kGrace{2000};

std::vector<char*> pointers(const std::vector<std::string>& words) {
    std::vector<char*> result;
    for (const std::string& word : words)
        result.push_back(const_cast<char*>(word.c_str()));
    result.push_back(nullptr);
    return result;
}

/// Becomes the program; returns only when there is none.
void execute(const std::vector<std::string>& command) {
    const std::vector<char*> arguments = pointers(command);
    execvp(arguments[0], arguments.data());
}

/// What a shell command prints; empty when it cannot run.
std::string output_of(const char* command) {
    std::string output;
    FILE* pipe = popen(command, "r");
    if (pipe == nullptr) return output;
    char buffer[512];
    while (const std::size_t got = fread(buffer, 1, sizeof buffer, pipe))
        output.append(buffer, got);
    pclose(pipe);
    return output;
}

void check_ranks(int ranks) {
    if (ranks < 1) reject("--spawn", ranks, "must be positive");
}

/// The children of spawn_processes().
class Children {
  public:
    void add(pid_t child) { alive_.push_back(child); }
    bool any() const {
        for (pid_t child : alive_)
            if (child > 0) return true;
        return false;
    }
    void signal_all(int number) const {
        for (pid_t child : alive_)
            if (child > 0) kill(child, number);
    }
    /// Collects those that have ended. The failure to tell is the first, or the first
    /// that a signal ended: the other ranks end because of it, perhaps before it is seen.
    void collect() {
        for (std::size_t rank = 0; rank < alive_.size(); ++rank) {
            int status = 0;
            if (alive_[rank] <= 0 || waitpid(alive_[rank], &status, WNOHANG) <= 0)
                continue;
            alive_[rank] = 0;
            const bool first = failed_rank_ < 0 || (!WIFSIGNALED(failed_status_) &&
                                                    WIFSIGNALED(status) && !stopping_);
            if (status == 0 || !first) continue;
            failed_rank_ = int(rank);
            failed_status_ = status;
        }
    }
    bool failed() const { return failed_rank_ >= 0; }

    /// First a word, then force; signals from here count as nobody's failure.
    void stop(int number) {
        stopping_ = true;
        signal_all(number);
    }

    /// The job's exit code; says on stderr who failed.
    int verdict() const {
        if (!failed()) return 0;
        if (WIFSIGNALED(failed_status_)) {
            fmt::print(stderr, "moe: rank {} was ended by a signal: {}\n", failed_rank_,
                       strsignal(WTERMSIG(failed_status_)));
            return 128 + WTERMSIG(failed_status_);
        }
        fmt::print(stderr, "moe: rank {} failed first, exit code {}\n", failed_rank_,
                   WEXITSTATUS(failed_status_));
        return WEXITSTATUS(failed_status_);
    }

  private:
    std::vector<pid_t> alive_;  // by rank; 0 once it has ended
    int failed_rank_ = -1, failed_status_ = 0;
    bool stopping_ = false;
};

}  // namespace

void die_with_launcher() {
    const char* launcher = std::getenv(kSpawnedBy);
    if (launcher == nullptr) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != std::atoi(launcher)) _exit(kExitRanksFailed);  // already gone
}

std::vector<std::string> mpirun_flags(const std::string& version, bool as_root) {
    const std::string open_mpi = "(Open MPI) ";
    const std::size_t found = version.find(open_mpi);
    if (found == std::string::npos) return {};
    // The one spelling that versions 4 and 5 share; 5 ignores 4's variables in silence.
    std::vector<std::string> flags = {"--map-by", ":OVERSUBSCRIBE"};
    if (as_root) flags.push_back("--allow-run-as-root");
    // What a rank died of it has said itself. From 5 on, mpirun cannot be told.
    if (std::atoi(version.c_str() + found + open_mpi.size()) < 5)
        flags.push_back("--quiet");
    return flags;
}

int spawn_with_mpirun(int ranks, const std::vector<std::string>& command) {
    check_ranks(ranks);
    const std::vector<std::string> flags =
        mpirun_flags(output_of("mpirun --version 2>/dev/null"), getuid() == 0);
    // The process becomes mpirun, so its id is that of the ranks' parent; not so with
    // MPICH, which puts a proxy between them and ends the ranks itself.
    if (!flags.empty()) setenv(kSpawnedBy, std::to_string(getpid()).c_str(), 1);
    std::vector<std::string> whole = {"mpirun", "-n", std::to_string(ranks)};
    whole.insert(whole.end(), flags.begin(), flags.end());
    whole.insert(whole.end(), command.begin(), command.end());
    execute(whole);
    reject("mpirun", std::strerror(errno),
           "--spawn needs it where there are no GPUs: apt-get update && apt-get install "
           "openmpi-bin");
}

int spawn_processes(int ranks, const std::vector<std::string>& command) {
    check_ranks(ranks);
    const int port = [] {
        const Socket probe = listen_on(0);
        return port_of(probe);
    }();
    const pid_t launcher = getpid();
    Children children;
    for (int rank = 0; rank < ranks; ++rank) {
        const pid_t child = fork();
        if (child < 0) {
            children.signal_all(SIGKILL);
            reject("--spawn", ranks, std::string("fork: ") + std::strerror(errno));
        }
        if (child > 0) {
            children.add(child);
            continue;
        }
        for (const auto& [name, value] : {std::pair{"RANK", rank},
                                          {"LOCAL_RANK", rank},
                                          {"WORLD_SIZE", ranks},
                                          {"MOE_PORT", port},
                                          {kSpawnedBy, int(launcher)}})
            setenv(name, std::to_string(value).c_str(), 1);
        setenv("MASTER_ADDR", "127.0.0.1", 1);
        execute(command);
        fmt::print(stderr, "moe: {}: {}\n", command[0], std::strerror(errno));
        _exit(127);
    }
    // First word, then force.
    std::optional<Clock::time_point> failed;
    while (children.any()) {
        children.collect();
        if (children.failed() && !failed) failed = Clock::now();
        const auto since = failed ? Clock::now() - *failed : Clock::duration::zero();
        if (since > 2 * kGrace)
            children.stop(SIGKILL);
        else if (since > kGrace)
            children.stop(SIGTERM);
        std::this_thread::sleep_for(milliseconds(10));
    }
    return children.verdict();
}

}  // namespace moe::distributed
