// info.cpp: `moe info`, what this build is, has, and lacks.

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "cli/commands.h"
#include "cli/info/machine.h"
#include "cli/info/version.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "core/tier.h"
#include "distributed/communicators/mpi_communicator.h"
#include "distributed/communicators/nccl_communicator.h"

namespace moe {
namespace {

void print_fields() {
    const MoEConfig defaults;
    const auto values = config_to_json(defaults);
    fmt::print("{:<44} {:<14} {}\n", "flag", "default", "meaning");
    for (const FieldInfo& field : config_fields())
        fmt::print("{}\n", wrapped(fmt::format("{:<44} {:<14} {}", flag_name(field.name),
                                               values[field.name].dump(), field.help),
                                   60));
}

void print_build() {
    fmt::print("Commit   {}\n", commit());
    fmt::print("Build    {}, {}, {}{}\n", MOE_COMPILER, MOE_BUILD_TYPE, MOE_INSTRUCTIONS,
#ifdef MOE_CHECKED
               ", checked"
#else
               ""
#endif
    );
#ifdef _OPENMP
    fmt::print("Threads  OpenMP, {} hardware threads\n",
               std::thread::hardware_concurrency());
#else
    fmt::print("Threads  1: built without OpenMP (g++ has it)\n");
#endif
}

void print_tiers() {
    fmt::print("Tiers\n");
    for (const Tier* tier : tiers()) {
        std::string dtypes;
        for (DType dtype : tier->dtypes())
            dtypes += (dtypes.empty() ? "" : ", ") + to_string(dtype);
        if (const std::string missing = tier->missing(); missing.empty())
            fmt::print("  ✓ {:<15} {}; {}\n", tier->name(), dtypes, tier->device());
        else
            fmt::print("  ✗ {:<15} {}; {}\n", tier->name(), dtypes, missing);
    }
    fmt::print("  ✗ optimized_gpu   not part of the project yet\n");
    fmt::print("Dispatchers\n  ✓ allgather, alltoall, flex\n");
}

void print_ranks() {
    const auto back_end = [](const char* name, const std::string& what,
                             const std::string& missing) {
        const bool there = missing.empty();
        fmt::print("  {} {:<15} {}\n", there ? "✓" : "✗", name, there ? what : missing);
    };
    fmt::print("Ranks\n");
    back_end("threads", "of one process (--ranks)", "");
    back_end("MPI", "processes without GPUs (--spawn, --processes)",
             distributed::MpiSession::available()
                 ? ""
                 : "not in this build: `./moe compare --spawn 2` installs it");
    using distributed::NcclSession;
    const std::string missing = NcclSession::missing();
    back_end("NCCL",
             fmt::format("one GPU each (--spawn, --processes); {}; never run so far",
                         missing.empty() ? NcclSession::library() : ""),
             missing);
}

/// For programs: the machine, as every result names it.
void print_json() {
    const bench::Result machine = make_result(true);
    const nlohmann::ordered_json json = {{"commit", machine.commit},
                                         {"kind", machine.kind},
                                         {"device", machine.device},
                                         {"facts", machine.facts}};
    fmt::print("{}\n", json.dump(1));
}

}  // namespace

void add_info(CommandLine& line) {
    struct InfoOptions {
        bool fields = false, json = false;
    };
    auto options = std::make_shared<InfoOptions>();
    Command& command = line.add(
        "info", "Show the build, its tiers and devices, and what is missing and why.");
    const Flag& fields = command.flag("--fields", options->fields,
                                      "List every config field, its flag and default");
    command.flag("--json", options->json, "The machine and its device as JSON")
        .excludes(fields);
    command.runs([options] {
        if (options->json) {
            print_json();
        } else if (options->fields) {
            print_fields();
        } else {
            print_build();
            print_tiers();
            print_ranks();
        }
        return kExitOk;
    });
}

}  // namespace moe
