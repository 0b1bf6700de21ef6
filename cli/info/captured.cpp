#include "cli/info/captured.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <sstream>

#include "cli/files.h"
#include "cli/places.h"
#include "core/error.h"

namespace moe {
namespace {

/// The columns of the file, in order; its first line names them.
const std::vector<std::string CapturedRow::*> kColumns = {
    &CapturedRow::code, &CapturedRow::model, &CapturedRow::block, &CapturedRow::outcome,
    &CapturedRow::fp64, &CapturedRow::fp32,  &CapturedRow::bf16,  &CapturedRow::what};
const std::string kHeader = "code\tmodel\tblock\toutcome\tfp64\tfp32\tbf16\twhat";

CapturedRow read_row(const std::string& line, const std::string& path) {
    CapturedRow row;
    std::istringstream cells(line);
    std::size_t column = 0;
    for (std::string cell; std::getline(cells, cell, '\t'); ++column)
        if (column < kColumns.size()) row.*kColumns[column] = cell;
    if (column != kColumns.size())
        reject(path, line.substr(0, 60),
               fmt::format("must have {} cells", kColumns.size()));
    return row;
}

}  // namespace

std::vector<CapturedRow> captured_rows() {
    const std::string path = golden_folder() + "/models/captured.tsv";
    std::istringstream lines(read_file("captured", path));
    std::string line;
    std::getline(lines, line);
    if (line != kHeader) reject(path, line.substr(0, 60), "must begin with its header");
    std::vector<CapturedRow> rows;
    while (std::getline(lines, line)) rows.push_back(read_row(line, path));
    return rows;
}

std::string captured_table() {
    std::string table =
        "| code | model | its block | fp64 | fp32 | bf16 |\n|---|---|---|---|---|---|\n";
    for (const CapturedRow& row : captured_rows())
        if (row.outcome == "match")
            table += fmt::format("| `{}` | `{}` | `{}` | {} | {} | {} |\n", row.code,
                                 row.model, row.block, row.fp64, row.fp32, row.bf16);
    return table;
}

std::string refused_table() {
    std::string table = "| code | model | why it is refused |\n|---|---|---|\n";
    std::vector<std::string> not_run;
    for (const CapturedRow& row : captured_rows()) {
        if (row.outcome == "refused")
            table += fmt::format("| `{}` | `{}` | {} |\n", row.code, row.model, row.what);
        else if (row.outcome != "match")
            not_run.push_back("`" + row.code + "`");
    }
    if (!not_run.empty())
        table += fmt::format("\nNot run, since the small model was not to be had: {}.\n",
                             fmt::join(not_run, ", "));
    return table;
}

}  // namespace moe
