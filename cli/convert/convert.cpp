// convert.cpp: `moe convert`, a checkpoint's MoE layers under another model's names.

#include "core/checkpoint/convert.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/checkpoint/layouts.h"

namespace moe {
namespace {

int run_convert(const checkpoint::Conversion& conversion) {
    const checkpoint::Converted done = checkpoint::convert(conversion);
    const std::size_t count = done.layers.size();
    fmt::print("{}: {} {} as {}, {} other {} as they were, in {} {}\n", conversion.to,
               count == 1 ? "layer" : "layers", fmt::join(done.layers, " "),
               conversion.layout, done.others, done.others == 1 ? "tensor" : "tensors",
               done.files.size(), done.files.size() == 1 ? "file" : "files");
    return kExitOk;
}

}  // namespace

void add_convert(CommandLine& line) {
    auto conversion = std::make_shared<checkpoint::Conversion>();
    Command& command =
        line.add("convert",
                 "Write a checkpoint's MoE layers under another model's names.\n"
                 "Tensors of other parts, and config.json, stay as they are: a model's "
                 "own program "
                 "reads what is in its own layout.\n"
                 "Exit code: 0 written, 2 bad input, and nothing is written.\n\n"
                 "Examples:\n"
                 "  moe convert Mixtral-8x7B-v0.1 mixtral-megatron --layout megatron\n"
                 "  moe convert gpt-oss-20b-bf16 one-layer --layout packed --layer 3");
    command.option("from", conversion->from, "Folder of the checkpoint").required();
    command.option("to", conversion->to, "Folder to write; must not be there").required();
    command
        .option("--layout", conversion->layout,
                fmt::format("Whose names and order: {}",
                            fmt::join(checkpoint::layout_names(), ", ")))
        .required()
        .values(checkpoint::layout_names());
    command.option("--layer", conversion->layer,
                   "This layer's block alone (default: the whole checkpoint)");
    command.flag(
        "--overwrite", conversion->overwrite,
        "Put it in the place of a checkpoint that is there, and of nothing more");
    command
        .option("--fc1-layout", conversion->options.fc1_layout,
                "How FC1 lies in `from`, where its shape does not tell: rows, columns or "
                "interleaved")
        .values({"rows", "columns", "interleaved"});
    command.runs([conversion] { return run_convert(*conversion); });
}

}  // namespace moe
