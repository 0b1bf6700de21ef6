// command.cpp: `moe microscope`, the lesson of docs/microscope.md.

#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/files.h"
#include "core/error.h"
#ifdef CUDA_ON_CPU_OBSERVE
#include "cli/microscope/lesson.h"
#endif

namespace moe {
namespace {

struct MicroscopeOptions {
    std::int64_t rows = 64, out = 192, in = 512;
    bool races = false;
    std::optional<std::string> json, page, pictures;
};

#ifdef CUDA_ON_CPU_OBSERVE
int run_microscope(const MicroscopeOptions& options) {
    const microscope::Sizes sizes{options.rows, options.out, options.in};
    require_sizes(sizes);
    std::string page;
    if (options.page) {  // refuses its markers before the run, not after it
        page = read_file("--page", *options.page);
        with_regions(*options.page, page, microscope::page_regions({}, sizes),
                     "microscope");
    }
    fmt::print(
        "y ({0}, {1}) = x ({0}, {2}) Wᵀ; emulated: counted on this CPU, not timed\n\n",
        sizes.rows, sizes.out, sizes.in);
    std::vector<microscope::Look> looks;
    for (const microscope::Version version : microscope::kVersions)
        looks.push_back(microscope::look_at(version, sizes, options.races));
    microscope::print_looks(looks);
    Outputs outputs;
    if (options.page)
        outputs.add("--page",
                    {*options.page,
                     with_regions(*options.page, page,
                                  microscope::page_regions(looks, sizes), "microscope")});
    if (options.pictures)
        for (const auto& [name, svg] : microscope::pictures(looks, sizes))
            outputs.add("--pictures", {*options.pictures + "/" + name, svg});
    if (options.json)
        outputs.add("--json",
                    {*options.json, microscope::to_json(looks, sizes).dump(1) + "\n"});
    outputs.write();
    return microscope::is_clean(looks) ? kExitOk : kExitDiffers;
}
#else
int run_microscope(const MicroscopeOptions&) {
    throw InputError(
        "microscope = this build: sees no loads and stores; `./moe microscope` builds "
        "one "
        "that does (preset host-observe)");
}
#endif

}  // namespace

void add_microscope(CommandLine& line) {
    auto options = std::make_shared<MicroscopeOptions>();
    Command& command = line.add(
        "microscope",
        "One matrix product in five kernels, and what each asks of memory.\n"
        "From one thread per result to TMA and wgmma, counted on the CPU executor:\n"
        "docs/microscope.md is the lesson, docs/microscope/*.cu are its kernels.\n"
        "Exit code: 0 done, 1 results differ or a race was found, 2 bad input.\n\n"
        "Examples:\n"
        "  moe microscope                             the five, in a table\n"
        "  moe microscope --pictures /tmp/lanes       which lane touches what, as SVG\n"
        "  moe microscope --rows 100 --races          other sizes; are they race-free?");
    command.option("--rows", options->rows, "Rows of x and y (default 64)");
    command.option("--out", options->out, "Rows of W, a multiple of 4 (default 192)");
    command.option("--in", options->in,
                   "Columns of x and W, a multiple of 8 (default 512)");
    command.flag("--races", options->races,
                 "Look for races and reads of unwritten memory as well; slower");
    command.option("--pictures", options->pictures,
                   "Draw what lanes touch, and a timeline, into this folder");
    command.option("--json", options->json, "Write the counters to a file");
    command.option("--page", options->page,
                   "Write the table into this page, between its markers <!-- moe "
                   "microscope: … -->");
    command.runs([options] { return run_microscope(*options); });
}

}  // namespace moe
