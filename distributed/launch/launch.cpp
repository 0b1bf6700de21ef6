// launch.cpp: who am I, where are the others, and a program between hello and good-bye.

#include "distributed/launch/launch.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "distributed/communicators/mpi_communicator.h"
#include "distributed/communicators/nccl_communicator.h"
#include "distributed/communicators/watchdog.h"

namespace moe::distributed {
namespace {

using std::chrono::milliseconds;

/// Names of the three variables of a launcher.
struct Launcher {
    const char *source, *rank, *world_size, *local_rank;
};
constexpr Launcher kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
};

std::optional<int> number_in(const Environment& environment, const char* name) {
    const char* text = environment(name);
    if (text == nullptr || *text == '\0') return {};
    int value = 0;
    const char* end = text + std::strlen(text);
    const auto [rest, error] = std::from_chars(text, end, value);
    if (error != std::errc() || rest != end || value < 0)
        reject(name, text, "must be a number from 0");
    return value;
}

RankIdentity checked(RankIdentity identity, const char* rank_name,
                     const char* size_name) {
    if (identity.world_size < 1)
        reject(size_name, identity.world_size, "must be positive");
    if (identity.rank < 0 || identity.rank >= identity.world_size)
        reject(rank_name, identity.rank,
               fmt::format("must be from 0 to {} ({} is {})", identity.world_size - 1,
                           size_name, identity.world_size));
    return identity;
}

std::string host_name() {
    char name[256] = {};
    gethostname(name, sizeof name - 1);
    return name;
}

/// The end of a program of one rank, however it came about.
int run_watched(Watchdog& watchdog, Communicator& world,
                const std::function<int(Communicator& world)>& program) {
    const std::string me = fmt::format("rank {}", world.world_rank(world.rank()));
    std::string line;    // for this process's stderr
    std::string reason;  // for the other ranks; empty: the line
    int code = 2;
    try {
        code = program(world);
        if (code == 0) {
            watchdog.leave();
            return 0;
        }
        line = fmt::format("{}: has ended with exit code {}", me, code);
    } catch (const CommunicatorError& error) {
        line = error.what();
        reason = error.reason();
        code = kExitRanksFailed;
    } catch (const InputError& error) {
        line = fmt::format("{}: {}", me, error.what());
    } catch (const std::exception& error) {
        line = fmt::format("{}: internal error, please report: {}", me, error.what());
        code = kExitRanksFailed;
    }
    fmt::print(stderr, "moe: {}\n", one_line(line));
    std::fflush(stderr);
    world.abort(reason.empty() ? line : reason);
    return code;
}

/// Rank 0 tells the others where its server is, over the transport that they have.
MasterAddress share_address(Communicator& world, int port) {
    constexpr std::int64_t kLength = 512;
    std::vector<std::uint8_t> text(kLength, 0);
    const std::string mine = fmt::format("{} {}", port, host_name());
    std::copy(mine.begin(), mine.end(), text.begin());
    const Tensor shared = Tensor::from({kLength}, text);
    world.broadcast(shared, 0);
    const char* from_rank_0 = reinterpret_cast<const char*>(shared.data<std::uint8_t>());
    const char* host = std::strchr(from_rank_0, ' ') + 1;
    return {host == host_name() ? "127.0.0.1" : host, std::atoi(from_rank_0)};
}

/// Rank 0's server, where this is rank 0.
std::unique_ptr<RendezvousServer> server_of_rank_0(int rank, int port, int world_size,
                                                   milliseconds deadline) {
    if (rank != 0) return nullptr;
    return std::make_unique<RendezvousServer>(port, world_size, deadline);
}

/// An operation that has a deadline of its own knows better than the watchdog which rank
/// it waits for.
milliseconds watchdog_deadline(const LaunchOptions& options) {
    return options.deadline + milliseconds(2000);
}

/// MPI numbers its ranks itself; variables of another launcher may be around, but flags
/// are meant.
void check_against_mpi(const RankIdentity& identity, const MpiSession& session) {
    const bool by_flags = identity.source == "flags";
    if (session.size() != identity.world_size)
        reject("MPI", fmt::format("{} ranks", session.size()),
               fmt::format("{} says {}; start it with mpirun, srun or --spawn",
                           by_flags ? "--world-size" : identity.source,
                           identity.world_size));
    if (by_flags && session.rank() != identity.rank)
        reject("--rank", identity.rank,
               fmt::format("must be {}, as MPI counts, or be left out", session.rank()));
}

int run_over_mpi(const LaunchOptions& options, const RankIdentity& identity,
                 const std::function<int(Communicator& world)>& program) {
    MpiSession session;
    check_against_mpi(identity, session);
    std::unique_ptr<Watchdog> watchdog;
    const auto abort = [&](const std::string& reason) {
        if (watchdog) watchdog->abort(reason);
    };
    const auto server =
        server_of_rank_0(session.rank(), 0, session.size(), options.deadline);
    // In books of its own: the program's operations count from 1.
    const MasterAddress address = share_address(
        *session.world(std::make_shared<OpLedger>(), options.deadline, abort),
        server ? server->port() : 0);
    auto control = std::make_unique<ControlConnection>(
        address.host, address.port, session.rank(), session.size(), options.fingerprint,
        options.deadline);
    const auto ledger = std::make_shared<OpLedger>();
    const auto world = session.world(ledger, options.deadline, abort);
    watchdog = std::make_unique<Watchdog>(ledger, std::move(control),
                                          watchdog_deadline(options));
    return run_watched(*watchdog, *world, program);
}

int run_over_nccl(const LaunchOptions& options, const RankIdentity& identity,
                  const Environment& environment,
                  const std::function<int(Communicator& world)>& program) {
    const MasterAddress address = master_address(environment);
    const auto server = server_of_rank_0(identity.rank, address.port, identity.world_size,
                                         options.deadline);
    auto control = std::make_unique<ControlConnection>(
        address.host, address.port, identity.rank, identity.world_size,
        options.fingerprint, options.deadline);
    const auto ledger = std::make_shared<OpLedger>();
    std::unique_ptr<Watchdog> watchdog;
    const NcclSession session(*control, identity.local_rank, options.deadline);
    const auto world = session.world(ledger, [&](const std::string& reason) {
        if (watchdog) watchdog->abort(reason);
    });
    watchdog =
        std::make_unique<Watchdog>(ledger, std::move(control), watchdog_deadline(options),
                                   [&] { return session.error(); });
    return run_watched(*watchdog, *world, program);
}

}  // namespace

std::optional<RankIdentity> identify_rank(std::optional<int> rank_flag,
                                          std::optional<int> world_size_flag,
                                          const Environment& environment) {
    if (rank_flag.has_value() != world_size_flag.has_value())
        reject(rank_flag ? "--world-size" : "--rank", "missing",
               "--rank and --world-size go together");
    if (rank_flag) {
        const int local = number_in(environment, "LOCAL_RANK").value_or(*rank_flag);
        return checked({*rank_flag, *world_size_flag, local, "flags"}, "--rank",
                       "--world-size");
    }
    for (const Launcher& launcher : kLaunchers) {
        const auto rank = number_in(environment, launcher.rank);
        const auto size = number_in(environment, launcher.world_size);
        if (!rank && !size) continue;
        if (!rank || !size)
            reject(
                rank ? launcher.world_size : launcher.rank, "missing",
                fmt::format("{} and {} go together", launcher.rank, launcher.world_size));
        const int local = number_in(environment, launcher.local_rank).value_or(*rank);
        return checked({*rank, *size, local, launcher.source}, launcher.rank,
                       launcher.world_size);
    }
    return {};
}

MasterAddress master_address(const Environment& environment) {
    const char* host = environment("MASTER_ADDR");
    if (host == nullptr || *host == '\0')
        reject("MASTER_ADDR", "missing",
               "must name the machine of rank 0, as torchrun and --spawn do");
    if (const auto own = number_in(environment, "MOE_PORT")) return {host, *own};
    const auto port = number_in(environment, "MASTER_PORT");
    if (!port)
        reject("MASTER_PORT", "missing", "must be a free port of rank 0 (or MOE_PORT)");
    const bool torchrun = environment("TORCHELASTIC_RUN_ID") != nullptr;
    return {host, *port + (torchrun ? 1 : 0)};
}

int run_as_rank(const LaunchOptions& options,
                const std::function<int(Communicator& world)>& program) {
    die_with_launcher();
    const Environment environment = [](const char* name) { return std::getenv(name); };
    try {
        const auto identity =
            identify_rank(options.rank, options.world_size, environment);
        if (!identity)
            reject("rank", "missing",
                   "start with --spawn N, mpirun, srun or torchrun, or give --rank and "
                   "--world-size");
        return options.gpus ? run_over_nccl(options, *identity, environment, program)
                            : run_over_mpi(options, *identity, program);
    } catch (const CommunicatorError& error) {
        fmt::print(stderr, "moe: {}\n", one_line(error.what()));
        return kExitRanksFailed;
    } catch (const InputError& error) {
        fmt::print(stderr, "moe: {}\n", one_line(error.what()));
        return 2;
    }
}

}  // namespace moe::distributed
