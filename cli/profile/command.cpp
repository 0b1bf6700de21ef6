// command.cpp: `moe profile`, what the kernels of each step do to memory.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <set>

#include "cli/commands.h"
#include "cli/files.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/ranks/options.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/error.h"
#include "core/known_names.h"
#include "core/tier.h"
#ifdef CUDA_ON_CPU_OBSERVE
#include "cli/profile/figures.h"
#include "cli/profile/lanes_picture.h"
#include "cli/profile/occupancy.h"
#include "cli/profile/page.h"
#include "cli/profile/view.h"
#endif

namespace moe {
namespace {

const std::vector<std::string> kComponents = {"router", "dispatcher", "experts",
                                              "shared_experts", "layer"};

struct ProfileOptions {
    std::vector<std::string> tiers;
    std::string component = "layer", dtype = "bf16";
    std::optional<std::string> json, annotate, page, draw, svg;
    bool races = false;
    std::unique_ptr<LayerOptions> layer;
};

#ifdef CUDA_ON_CPU_OBSERVE
std::vector<ComponentSpec> choose_observed(const ProfileOptions& options,
                                           const MoEConfig& config) {
    const auto runs_kernels = [](const std::string& tier) {
        return find_tier("--tier", tier).is_emulated();
    };
    for (const std::string& tier : options.tiers)
        if (!runs_kernels(tier)) reject("--tier", tier, "must be one that runs kernels");
    std::vector<ComponentSpec> chosen =
        choose_suppliers(options.tiers, {options.dtype}, &config);
    std::erase_if(chosen, [&](const auto& each) { return !runs_kernels(each.tier); });
    return chosen;
}

void print_header(const profile::LayerProfile& profile, const LayerOptions& layer,
                  const MoEConfig& config) {
    fmt::print(
        "{}\n",
        wrapped(fmt::format("Layer   {}: {}", layer.model(), layer_in_words(config)), 8));
    fmt::print("Tokens  {}, {} expert rows\n", profile.sizes.num_tokens,
               profile.sizes.num_rows);
    fmt::print(
        "{}\n",
        wrapped(
            fmt::format("Tier    {}, emulated: counted on this CPU, not "
                        "timed; {} launches, {} waits of the host, {} "
                        "allocations, {} of device memory at most",
                        to_string(profile.spec.experts), profile.report.launches.size(),
                        profile.report.host_waits, profile.report.allocations,
                        bytes_in_words(std::int64_t(profile.report.peak_bytes))),
            8));
}

/// "naive_gpu/linear.cu:48" in its two parts; line 0 for all lines.
std::pair<std::string, int> place_of(const std::string& draw) {
    const std::size_t colon = draw.rfind(':');
    if (colon == draw.npos) return {draw, 0};
    int line = 0;
    const char* const end = draw.data() + draw.size();
    const auto [stop, error] = std::from_chars(draw.data() + colon + 1, end, line);
    if (error != std::errc() || stop != end || line < 1)
        reject("--draw", draw, "must be FILE or FILE:LINE, with a line from 1 on");
    return {draw.substr(0, colon), line};
}

/// "42, 47": of a file, or "none of this file".
std::string lines_of(const profile::LayerProfile& profile, const std::string& path) {
    std::set<int> lines;
    for (const auto& kernel : profile.report.kernels)
        for (const auto& line : kernel.lines)
            if (profile::is_file(line.file, path)) lines.insert(line.line);
    return lines.empty() ? "none of this file"
                         : fmt::format("{}", fmt::join(lines, ", "));
}

/// What lanes touched at a place, as an SVG file.
std::string draw_lanes(const ProfileOptions& options,
                       const profile::LayerProfile& profile, const std::string& source) {
    const auto [path, line] = place_of(*options.draw);
    const auto panels = profile::panels_of(profile.report, path, line, source);
    if (panels.empty())
        reject(
            "--draw", *options.draw,
            "no kernel touched memory there; lines that did: " + lines_of(profile, path));
    return profile::lanes_picture(
        panels, *options.draw + ": who touches what",
        "the first instruction of a warp at each line; recorded on the CPU executor");
}

/// The page with what was counted: of one tier kernel by kernel, of several beside each
/// other, between markers with the model's name.
std::string page_of(const ProfileOptions& options, const std::string& page,
                    const std::vector<profile::LayerProfile>& profiles,
                    const MoEConfig& config) {
    const std::string model = options.layer->model();
    if (profiles.size() == 1)
        return with_regions(*options.page, page,
                            profile::page_regions(profiles.front(), model, config),
                            "profile");
    return with_regions(*options.page, page,
                        profile::beside_regions(profiles, model, config),
                        "profile " + model.substr(0, model.find(',')));
}

void print_profile(const profile::LayerProfile& profile, const ProfileOptions& options,
                   bool races) {
    if (races) {
        profile::print_findings(profile);
        return;
    }
    profile::print_kernels(profile, options.component);
    profile::print_bounds(profile, options.component);
    profile::print_worst_lines(profile, options.component);
    const std::string table = MOE_SOURCE_DIR "/build/bundle/kernels.txt";
    if (std::filesystem::exists(table))
        profile::print_occupancy(profile, options.component,
                                 profile::read_kernel_table(read_file("table", table)));
}

int run_profile(const ProfileOptions& options) {
    if (std::find(kComponents.begin(), kComponents.end(), options.component) ==
        kComponents.end())
        reject_unknown("--component", options.component, kComponents, "known are");
    const LayerOptions& layer = *options.layer;
    require_no_rank_flags(layer);
    profile::LayerRequest request;
    request.config = layer.config();
    if (request.config.moe_router_hash_vocab_size)
        reject("moe_router_hash_vocab_size", *request.config.moe_router_hash_vocab_size,
               "must be left out here: profile has no token ids");
    request.seq_length = layer.seq_length();
    request.micro_batch_size = layer.micro_batch_size();
    request.seed = layer.seed();
    request.races = options.races || options.page;
    require_memory(request.config, request.seq_length * request.micro_batch_size);

    const std::string source =
        options.annotate ? read_file("--annotate", *options.annotate) : "";
    const std::string page = options.page ? read_file("--page", *options.page) : "";
    if (options.draw.has_value() != options.svg.has_value())
        throw InputError("--draw, --svg: each needs the other");
    const std::string drawn =
        options.draw ? read_file("--draw", place_of(*options.draw).first) : "";
    const std::vector<ComponentSpec> suppliers = choose_observed(options, request.config);
    if (options.draw && suppliers.size() != 1)
        reject("--draw", *options.draw,
               fmt::format("shows one tier in one dtype; --tier and --dtype choose {}",
                           suppliers.size()));
    if (options.page)  // refuses its markers before the run, not after it
        page_of(options, page, std::vector<profile::LayerProfile>(suppliers.size()),
                request.config);

    nlohmann::json all = nlohmann::json::array();
    std::vector<profile::LayerProfile> profiles;
    Outputs outputs;
    bool clean = true;
    for (const ComponentSpec& supplier : suppliers) {
        request.spec = ModuleSpec::uniform(supplier);
        profiles.push_back(profile::profile_layer(request));
        const profile::LayerProfile& profile = profiles.back();
        if (!all.empty()) fmt::print("\n");
        print_header(profile, layer, request.config);
        fmt::print("\n");
        print_profile(profile, options, request.races);
        if (options.draw)
            outputs.add("--svg", {*options.svg, draw_lanes(options, profile, drawn)});
        clean = clean && profile.report.findings.empty();
        all.push_back(profile::to_json(profile));
    }
    if (options.page)
        outputs.add("--page",
                    {*options.page, page_of(options, page, profiles, request.config)});
    if (profiles.size() > 1 && !request.races)
        profile::print_beside(profiles, options.component);
    if (options.annotate)
        fmt::print("\n{}", profile::annotated(profiles, *options.annotate, source));
    if (options.json) outputs.add("--json", {*options.json, all.dump(1) + "\n"});
    outputs.write();
    return clean ? kExitOk : kExitDiffers;
}
#else
int run_profile(const ProfileOptions&) {
    throw InputError(
        "profile = this build: sees no loads and stores; `./moe profile` builds one that "
        "does (preset host-observe)");
}
#endif

}  // namespace

void add_profile(CommandLine& line) {
    auto options = std::make_shared<ProfileOptions>();
    Command& command = line.add(
        "profile",
        "What the kernels of each step do to memory, and their races.\n"
        "Requests, sectors, bytes against the least that must move, bank conflicts; the\n"
        "worst lines. Counted on the CPU executor, in a build of its own: no figure is "
        "a\n"
        "time.\n"
        "Exit code: 0 done, 1 races or reads of unwritten memory, 2 bad input.\n\n"
        "Examples:\n"
        "  moe profile                                the layer, step by step\n"
        "  moe profile --component experts --preset olmoe --scale 16\n"
        "  moe profile --races                        two accesses that nothing orders\n"
        "  moe profile --annotate naive_gpu/linear.cu\n"
        "  moe profile --draw naive_gpu/linear.cu:47 --svg lanes.svg");
    command.option("--tier", options->tiers, "Tiers that run kernels (default: all)")
        .values(tier_names());
    command.option("--dtype", options->dtype, "fp64, fp32 or bf16 (default bf16)")
        .values(dtype_names());
    command
        .option("--component", options->component,
                "Steps to show: router, dispatcher, experts, shared_experts, layer "
                "(default layer)")
        .values(kComponents);
    command.flag("--races", options->races,
                 "Look for races and reads of unwritten memory instead; slower");
    command.option("--annotate", options->annotate,
                   "Print this source with the figures of its lines");
    command.option("--draw", options->draw,
                   "Draw which lane touches which sector or bank at FILE:LINE, or at all "
                   "lines of FILE, into the file of --svg");
    command.option("--svg", options->svg, "Where --draw draws");
    command.option("--page", options->page,
                   "Look for races, and write tables and what was found into this page, "
                   "between its markers <!-- moe profile: … -->, or, of several tiers, "
                   "<!-- moe profile MODEL: … -->");
    command.option("--json", options->json, "Write everything to a file");
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"qwen3_30b_a3b", 16, 64, 1});
    command.runs([options] { return run_profile(*options); });
}

}  // namespace moe
