// command.cpp: `moe wire`, what more ranks than there are here would send.

#include <fmt/format.h>

#include <cmath>

#include "cli/commands.h"
#include "cli/files.h"
#include "cli/options.h"
#include "cli/wire/view.h"
#include "core/error.h"
#include "core/recompute.h"

namespace moe {
namespace {

struct WireOptions {
    std::unique_ptr<LayerOptions> layer;
    std::int64_t gpus_per_node = 8;
    double nvlink = 340.0, network = 50.0, nvlink_us = 3.4, network_us = 14.0;
    std::optional<std::string> json, page, pictures;
};

wire::Machine make_machine(const WireOptions& options) {
    if (options.gpus_per_node < 1 || options.gpus_per_node > 64)
        reject("--gpus-per-node", options.gpus_per_node, "must be from 1 to 64");
    const auto link = [](const std::string& flag, double us, double gigabytes) {
        if (!(gigabytes > 0.0) || gigabytes > 1e6)
            reject(flag, gigabytes, "must be more than 0, up to 1e6 GB/s");
        if (!(us >= 0.0) || us > 1e6)
            reject(flag + "-us", us, "must be from 0 to 1e6 microseconds");
        return wire::Link{1e-6 * us, 1e9 * gigabytes};
    };
    wire::Machine machine;
    machine.gpus_per_node = options.gpus_per_node;
    machine.nvlink = link("--nvlink", options.nvlink_us, options.nvlink);
    machine.network = link("--network", options.network_us, options.network);
    return machine;
}

/// The grid is the model's own.
void require_no_grid(const MoEConfig& config) {
    const auto require_one = [](const char* field, std::int64_t size) {
        if (size != 1) reject(field, size, "must be left out: the model goes through EP");
    };
    require_one("tensor_model_parallel_size", config.tensor_model_parallel_size);
    require_one("context_parallel_size", config.context_parallel_size);
    require_one("expert_model_parallel_size", config.expert_model_parallel_size);
    require_one("expert_tensor_parallel_size",
                config.expert_tensor_parallel_size.value_or(1));
}

wire::Outlook make_outlook(const LayerOptions& layer, std::int64_t tokens,
                           const wire::Machine& machine) {
    const LayerOptions::Chosen chosen = layer.choose();
    require_no_grid(chosen.config);
    if (recomputes(chosen.config, "moe"))
        reject("recompute_modules", "moe",
               "must be left out: the model sends the rows of each step once");
    const std::string& type = chosen.config.moe_token_dispatcher_type;
    const bool all = type == "all" || !chosen.given.contains("moe_token_dispatcher_type");
    wire::Outlook outlook =
        look_ahead(layer.model(), chosen.config,
                   all ? std::vector<std::string>{"allgather", "alltoall", "flex"}
                       : std::vector<std::string>{type},
                   tokens, machine);
    if (outlook.estimates.empty())
        throw InputError(outlook.left_out.empty()
                             ? fmt::format("num_moe_experts = {}: must be even: EP goes "
                                           "from 2 to 64, doubled each time",
                                           outlook.config.num_experts())
                             : outlook.left_out[0]);
    return outlook;
}

int run_wire(const WireOptions& options) {
    const wire::Machine machine = make_machine(options);
    const LayerOptions& layer = *options.layer;
    const std::int64_t S = layer.seq_length(), B = layer.micro_batch_size();
    if (S < 1 || B < 1 || S > (std::int64_t{1} << 40) / B)
        reject("--seq-length * --micro-batch-size", fmt::format("{} * {}", S, B),
               "must be from 1 to 2^40 tokens of each rank");
    const wire::Outlook outlook = make_outlook(layer, S * B, machine);
    Outputs outputs;
    if (options.page || options.pictures) {
        const std::vector<wire::Outlook> presets = wire::presets(S * B, machine);
        if (options.page)
            outputs.add("--page",
                        {*options.page,
                         with_regions(*options.page, read_file("--page", *options.page),
                                      page_regions(presets, machine), "wire")});
        if (options.pictures)
            for (const wire::Outlook& each : presets)
                outputs.add("--pictures", {*options.pictures + "/" + each.model + ".svg",
                                           picture(each, machine)});
    }
    if (options.json)
        outputs.add("--json", {*options.json, to_json(outlook, machine).dump(1) + "\n"});
    outputs.write();
    print_outlook(outlook, machine);
    return kExitOk;
}

}  // namespace

void add_wire(CommandLine& line) {
    auto options = std::make_shared<WireOptions>();
    Command& command = line.add(
        "wire",
        "What a layer over 2 to 64 ranks sends, and what that takes at least.\n"
        "A model, never a measurement: even routing, alpha + bytes / beta on each "
        "kind of link.\n"
        "docs/wire.md shows the presets.\n"
        "Exit code: 0 done, 2 bad input.\n\n"
        "Examples:\n"
        "  moe wire --preset deepseek_v3\n"
        "  moe wire --preset olmoe --gpus-per-node 4 --network 25\n"
        "  moe wire --page docs/wire.md --pictures docs/wire");
    command.option("--gpus-per-node", options->gpus_per_node,
                   "GPUs that NVLink joins (default 8)");
    command.option("--nvlink", options->nvlink,
                   "GB/s that a GPU sends to its node (default 340)");
    command.option("--nvlink-us", options->nvlink_us,
                   "Microseconds of a round there (default 3.4)");
    command.option("--network", options->network,
                   "GB/s that a GPU sends to other nodes (default 50)");
    command.option("--network-us", options->network_us,
                   "Microseconds of a round there (default 14)");
    command.option("--json", options->json, "Write the estimates of the layer to a file");
    command.option("--page", options->page,
                   "Write the presets' tables into this page, between its markers <!-- "
                   "moe wire: … -->");
    command.option("--pictures", options->pictures, "Draw the presets into this folder");
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"qwen3_30b_a3b", 1, 4096, 2});
    command.runs([options] { return run_wire(*options); });
}

}  // namespace moe
