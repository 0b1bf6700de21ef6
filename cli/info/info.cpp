// info.cpp: `moe info`, what this build is, has, and lacks.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/files.h"
#include "cli/info/machine.h"
#include "cli/info/models.h"
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
    for (const FieldInfo& field : config_fields()) {
        const std::string flag = flag_name(field.name);
        std::string in_a_file = flag.substr(2);
        std::replace(in_a_file.begin(), in_a_file.end(), '-', '_');
        const std::string name =
            in_a_file == field.name ? "" : "in a file " + field.name + "; ";
        fmt::print("{}\n",
                   wrapped(fmt::format("{:<44} {:<14} {}{}", flag,
                                       values[field.name].dump(), name, field.help),
                           60));
    }
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

std::string list(const std::vector<DType>& dtypes) {
    std::string text;
    for (DType dtype : dtypes) text += (text.empty() ? "" : ", ") + to_string(dtype);
    return text;
}

/// "bf16 (router also fp64, fp32; dispatcher also fp32)": of a layer, and of components.
std::string describe_dtypes(const Tier& tier) {
    const std::vector<DType> common = tier.dtypes();
    std::vector<std::string> others;
    for (const auto& [name, kind] : {std::pair{"router", ComponentKind::router},
                                     {"dispatcher", ComponentKind::dispatcher},
                                     {"experts", ComponentKind::experts},
                                     {"shared experts", ComponentKind::shared_experts}}) {
        std::vector<DType> more = tier.dtypes(kind);
        std::erase_if(more, [&](DType dtype) {
            return std::find(common.begin(), common.end(), dtype) != common.end();
        });
        if (!more.empty()) others.push_back(fmt::format("{} also {}", name, list(more)));
    }
    return list(common) +
           (others.empty() ? "" : fmt::format(" ({})", fmt::join(others, "; ")));
}

void print_tiers() {
    fmt::print("Tiers\n");
    for (const Tier* tier : tiers()) {
        const std::string dtypes = describe_dtypes(*tier);
        if (const std::string missing = tier->missing(); missing.empty())
            fmt::print("  ✓ {:<15} {}; {}\n", tier->name(), dtypes, tier->device());
        else
            fmt::print("  ✗ {:<15} {}; {}\n", tier->name(), dtypes, missing);
    }
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
        bool fields = false, models = false, json = false;
        std::optional<std::string> page;
    };
    auto options = std::make_shared<InfoOptions>();
    Command& command = line.add(
        "info", "Show the build, its tiers and devices, and what is missing and why.");
    const Flag& fields = command.flag("--fields", options->fields,
                                      "List every config field, its flag and default");
    const Flag& models =
        command.flag("--models", options->models, "Which models' MoE block the layer is");
    const Flag& page = command.option(
        "--page", options->page,
        "Write the tables of the models into this page, between its markers "
        "<!-- moe info: … -->");
    command.flag("--json", options->json, "The machine and its device as JSON")
        .excludes(fields)
        .excludes(models)
        .excludes(page);
    command.runs([options] {
        if (options->page)
            write_file("--page",
                       {*options->page,
                        with_regions(*options->page, read_file("--page", *options->page),
                                     model_regions(), "info")});
        if (options->models || options->page) {
            print_models();
        } else if (options->json) {
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
