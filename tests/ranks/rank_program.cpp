// rank_program.cpp: one rank of a test in a process of its own. Prints one line on stdout
// that says how it ended, by which processes_test.cpp judges.
//
//   rank_program [--spawn N] [--fork] [--gpus] [--deadline MS] SCENARIO…

#include <signal.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "cli/flags.h"
#include "distributed/communicators/watchdog.h"
#include "distributed/launch/launch.h"
#include "distributed/launch/rendezvous.h"
#include "distributed/peer_memory/peer_barrier.h"
#include "gpu/check.h"
#include "gpu/tensor.h"
#include "tests/ranks/rank_scenarios.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using std::chrono::milliseconds;

/// One write, so that the lines of several ranks do not mix.
void say(const std::string& line) {
    const std::string text = line + "\n";
    [[maybe_unused]] const auto written = write(STDOUT_FILENO, text.data(), text.size());
}

/// What rank 1 does while the others meet in a barrier.
const std::map<std::string, std::function<void()>>& faults() {
    static const std::map<std::string, std::function<void()>> all = {
        {"killed", [] { raise(SIGKILL); }},
        {"stopped", [] { raise(SIGSTOP); }},
        {"exits_0", [] { _exit(0); }},
        {"sleeps", [] { std::this_thread::sleep_for(std::chrono::hours(1)); }},
    };
    return all;
}

/// The same while the others wait in a kernel.
constexpr const char* kInKernel = "_in_kernel";
void meet_in_kernels(Communicator& world, const std::function<void()>& fault) {
    const std::shared_ptr<Communicator> group = world.split("some", 0, world.rank());
    const auto barrier =
        distributed::PeerBarrier::make(group, distributed::PeerBarrier::way_for(*group));
    barrier->meet(Step::dispatch, {});
    if (world.rank() == 1) fault();
    barrier->meet(Step::combine, {});
    gpu::check(cudaDeviceSynchronize(), "kernels");
}

/// Everybody sleeps: only the launcher's end can end them.
void wait_for_launcher(int rank) {
    say(fmt::format("rank {}: pid {}", rank, getpid()));
    std::this_thread::sleep_for(std::chrono::hours(1));
}

void run_scenario(Communicator& world, const std::string& name) {
    if (name == "conformance") {
        const bool nccl = world.backend() == "NCCL";
        for (const Scenario& scenario : conformance_scenarios()) {
            if (nccl && scenario.fixed_order) continue;
            for (MemorySpace space : {MemorySpace::host, MemorySpace::device})
                if (!nccl || space == MemorySpace::device ||
                    scenario.name != "peer_memory")
                    scenario.run(world, space);
        }
    } else if (name == "waits") {
        wait_for_launcher(world.rank());
    } else if (name.ends_with(kInKernel)) {
        meet_in_kernels(world, faults().at(name.substr(0, name.find(kInKernel))));
    } else if (const auto fault = faults().find(name); fault != faults().end()) {
        world.barrier();
        if (world.rank() == 1) fault->second();
        world.barrier();
    } else {
        find_failure(name).run(world);
    }
}

int run_rank(const distributed::LaunchOptions& options, const std::string& scenario) {
    return run_as_rank(options, [&](Communicator& world) {
        try {
            run_scenario(world, scenario);
        } catch (const std::exception& error) {
            say(fmt::format("rank {}: FAIL {}", world.rank(), error.what()));
            throw;
        }
        say(fmt::format("rank {}: PASS over {}", world.rank(), world.backend()));
        return 0;
    });
}

/// Rendezvous and watchdog alone, without a transport: what spawn_processes() starts.
int run_control_only(const distributed::LaunchOptions& options,
                     const std::string& scenario) {
    distributed::die_with_launcher();
    const auto environment = [](const char* name) { return std::getenv(name); };
    const auto identity = *distributed::identify_rank({}, {}, environment);
    const auto address = distributed::master_address(environment);
    if (scenario == "control_absent" && identity.rank == 1) return 0;
    std::unique_ptr<distributed::RendezvousServer> server;
    if (identity.rank == 0)
        server = std::make_unique<distributed::RendezvousServer>(
            address.port, identity.world_size, options.deadline);
    auto control = std::make_unique<distributed::ControlConnection>(
        address.host, address.port, identity.rank, identity.world_size,
        options.fingerprint + (scenario == "control_differs" && identity.rank == 2
                                   ? "{\"topk\": 3,\"hidden_size\": 8}"
                                   : "{\"topk\": 2,\"hidden_size\": 8}"),
        options.deadline);
    if (identity.rank == 0) control->set("greeting", std::string("a\0b c", 5));
    if (control->get("greeting") != std::string("a\0b c", 5)) return 1;
    const auto ledger = std::make_shared<distributed::OpLedger>();
    std::vector<int> everybody;
    for (int r = 0; r < identity.world_size; ++r) everybody.push_back(r);
    distributed::Watchdog watchdog(ledger, std::move(control), options.deadline);
    if (scenario == "control_killed" && identity.rank == 1) raise(SIGKILL);
    if (scenario == "control_rank_0_killed" && identity.rank == 0) raise(SIGKILL);
    if (scenario == "control_waits") wait_for_launcher(identity.rank);
    if (scenario == "control_leaves" && identity.rank == 1) watchdog.leave();
    if (scenario != "control_good") {
        ledger->begin("all_gather", "world", 24, everybody);
        std::this_thread::sleep_for(std::chrono::hours(1));
    }
    watchdog.leave();
    say(fmt::format("rank {}: PASS without transport", identity.rank));
    return 0;
}

int run(int argc, char** argv) {
    CommandLine line("rank_program", "", "");
    Command& flags = line.add("run", "One rank of a test");
    std::int64_t spawn = 0, deadline = 60000;
    bool by_fork = false;
    distributed::LaunchOptions options;
    std::string scenario;
    flags.option("--spawn", spawn, "");
    flags.flag("--fork", by_fork, "");
    flags.flag("--gpus", options.gpus, "");
    flags.option("--deadline", deadline, "");
    flags.option("scenario", scenario, "").required();
    flags.runs([] { return 0; });
    std::vector<std::string> arguments(argv, argv + argc);
    arguments[0] = "run";
    line.run(std::move(arguments));
    options.deadline = milliseconds(deadline);
    gpu::register_device_memory();
    if (spawn > 0) {
        const std::vector<std::string> command = {argv[0], "--deadline",
                                                  std::to_string(deadline), scenario};
        return by_fork ? distributed::spawn_processes(int(spawn), command)
                       : distributed::spawn_with_mpirun(int(spawn), command);
    }
    if (scenario.rfind("control_", 0) == 0) return run_control_only(options, scenario);
    return run_rank(options, scenario);
}

}  // namespace
}  // namespace moe::test

int main(int argc, char** argv) {
    try {
        return moe::test::run(argc, argv);
    } catch (const moe::distributed::CommunicatorError& error) {
        fmt::print(stderr, "moe: {}\n", error.what());
        return moe::distributed::kExitRanksFailed;
    } catch (const std::exception& error) {
        fmt::print(stderr, "moe: {}\n", error.what());
        return 2;
    }
}
