#include "cli/measure/result_pages.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <utility>

#include "bench/pictures.h"
#include "bench/result_words.h"
#include "bench/tables.h"
#include "cli/words.h"

namespace moe {
namespace {

using bench::cell;
using bench::Measurement;
using bench::Result;
using bench::Run;

constexpr const char* kNotMeasured = "**Not measured on a GPU yet.**";

/// A run of a result that leads, and its pictures' paths; "" for those without.
struct Shown {
    const FiledResult* filed;
    const Run* run;
    std::string ladder, waterfall, roofline, counts;
};

/// From the folder of a page to a path from the project's folder.
using Link = std::function<std::string(const std::string&)>;

std::string from_readme(const std::string& path) {
    return path;
}
std::string from_docs(const std::string& path) {
    return std::filesystem::path(path).lexically_relative("docs");
}

/// The newest of each device; the shelf is sorted that way.
std::vector<const FiledResult*> leading(const std::vector<FiledResult>& shelf) {
    std::vector<const FiledResult*> leaders;
    for (const FiledResult& filed : shelf)
        if (filed.result && (leaders.empty() || leaders.back()->device != filed.device))
            leaders.push_back(&filed);
    return leaders;
}

/// Draws a run, and adds its pictures to `pictures`.
Shown draw(const FiledResult& filed, const Run& run, std::vector<FileText>& pictures) {
    const auto is_taken = [&](const std::string& path) {
        for (const FileText& picture : pictures)
            if (picture.path == path) return true;
        return false;
    };
    const auto file = [&](const char* kind, const std::string& svg) {
        if (svg.empty()) return std::string();
        // Rendered documentation puts all pictures into one folder, so each is named
        const std::string stem = fmt::format("docs/results/{0}/{0}-{1}-{2}", filed.device,
                                             bench::workload_slug(run.workload), kind);
        std::string path = stem + ".svg";
        for (int number = 2; is_taken(path); ++number)
            path = fmt::format("{}-{}.svg", stem, number);
        pictures.push_back({path, svg});
        return path;
    };
    const std::string& device = filed.result->device;
    Shown shown{&filed, &run, "", "", "", ""};
    shown.ladder = file("ladder", bench::ladder_picture(run, device));
    if (filed.result->kind == "gpu") {
        shown.waterfall = file("waterfall", bench::waterfall_picture(run, device));
        shown.roofline = file("roofline", bench::roofline_picture(run, device));
    }
    shown.counts = file("counts", bench::counts_picture(run, device));
    return shown;
}

std::string image(const Link& link, const std::string& path, const std::string& words) {
    return path.empty() ? "" : fmt::format("![{}]({})\n\n", cell(words), link(path));
}

/// Machine and workload in bold, above what is told about them.
std::string heading(const Shown& shown) {
    return fmt::format("**{}; {}**\n\n", cell(shown.filed->result->device),
                       cell(bench::workload_in_words(shown.run->workload)));
}

std::string workload_line(const Shown& shown) {
    const bench::Workload& w = shown.run->workload;
    return fmt::format(
        "H={} E={} K={} F={}{}; {} expert rows, {} to {} an expert, median {}; held "
        "against {}\n\n",
        w.H, w.E, w.K, w.F, w.Fs > 0 ? fmt::format(" Fs={}", w.Fs) : "", grouped(w.rows),
        grouped(w.min_rows), grouped(w.max_rows), grouped(w.median_rows),
        cell(shown.run->reference));
}

/// What runs of these kinds tell, run by run; `otherwise` when none tells anything.
std::string run_by_run(const std::vector<Shown>& all,
                       const std::vector<std::string>& kinds,
                       const std::string& otherwise,
                       const std::function<std::string(const Shown&)>& told) {
    std::string text;
    for (const Shown& shown : all)
        for (const std::string& kind : kinds)
            if (shown.filed->result->kind == kind)
                if (const std::string words = told(shown); !words.empty())
                    text += heading(shown) + words + "\n";
    return text.empty() ? otherwise + "\n" : text;
}

/// What the visits to GPUs tell beside their runs.
std::string visit_by_visit(const std::vector<const FiledResult*>& leaders,
                           const std::function<std::string(const Result&)>& told) {
    std::string text;
    for (const FiledResult* filed : leaders)
        if (const std::string words = told(*filed->result); !words.empty())
            text += fmt::format("**{}{}**\n\n{}\n", cell(filed->result->device),
                                filed->result->kind == "gpu" ? "" : ", where no GPU is",
                                words);
    return text;
}

std::string data_line(const FiledResult& filed, const std::string& commit) {
    const std::string file = std::filesystem::path(filed.path).filename();
    const std::string link = fmt::format("[{}]({})", cell(file), from_docs(filed.path));
    if (!filed.result)
        return fmt::format(
            "{}: version {} of the format; this page shows version {}, so its numbers "
            "are not below",
            link, filed.version, bench::kResultVersion);
    const bool other = !commit.empty() && filed.result->commit != commit;
    return fmt::format("{}: {}, commit {}{}", link, cell(filed.result->created),
                       cell(filed.result->commit),
                       other ? " (another commit than this page was made from)" : "");
}

std::string machines(const std::vector<FiledResult>& shelf, const std::string& commit,
                     bool any_gpu) {
    std::string text, device;
    for (const FiledResult& filed : shelf) {
        const bool leads = filed.device != device;
        device = filed.device;
        if (leads)
            text += fmt::format("* **{}**: {}\n",
                                cell(filed.result ? filed.result->device : filed.device),
                                data_line(filed, commit));
        else
            text += fmt::format("  * {}{}\n", filed.result ? "older: " : "",
                                data_line(filed, commit));
    }
    if (!any_gpu) text = fmt::format("{}\n\n{}", kNotMeasured, text);
    for (const FiledResult* filed : leading(shelf))
        text += fmt::format(
            "\n<details><summary>{}: the machine</summary>\n\n{}\n"
            "</details>\n",
            cell(filed->result->device), bench::facts_table(*filed->result));
    return text;
}

std::string counts(const Shown& shown, bool any_gpu) {
    const std::string table = bench::counts_table(*shown.run);
    return table.empty()
               ? ""
               : fmt::format("Counted on the CPU executor{}.\n\n{}{}{}",
                             any_gpu ? "" : "; not measured on a GPU yet",
                             image(from_docs, shown.counts, "launches and host waits"),
                             workload_line(shown), table);
}

/// The README's region: the whole layer where a GPU was measured, else what was counted.
std::string summary(const std::vector<Shown>& all) {
    const FiledResult* told = nullptr;  // the first run of each machine is enough
    const std::string measured = run_by_run(all, {"gpu"}, "", [&](const Shown& shown) {
        if (shown.filed == std::exchange(told, shown.filed)) return std::string();
        const std::string& picture =
            shown.waterfall.empty() ? shown.ladder : shown.waterfall;
        return image(from_readme, picture, "the layer, step by step from tier to tier");
    });
    if (measured != "\n") return measured;
    for (const Shown& shown : all)
        if (!shown.counts.empty())
            return fmt::format(
                "{} Counted instead, by running the kernels on a CPU:\n\n{}",
                kNotMeasured,
                image(from_readme, shown.counts,
                      "launches and host waits, part by part"));
    return std::string(kNotMeasured) + "\n";
}

}  // namespace

ResultPages make_result_pages(const std::vector<FiledResult>& shelf,
                              const std::string& commit) {
    ResultPages pages;
    const std::vector<const FiledResult*> leaders = leading(shelf);
    std::vector<Shown> all;
    for (const FiledResult* filed : leaders)
        for (const Run& run : filed->result->runs)
            all.push_back(draw(*filed, run, pages.pictures));

    const auto of_gpus = [&](const std::function<std::string(const Shown&)>& told) {
        return run_by_run(all, {"gpu"}, kNotMeasured, told);
    };
    const bool any_gpu = std::any_of(
        leaders.begin(), leaders.end(),
        [](const FiledResult* filed) { return filed->result->kind == "gpu"; });
    const auto told_or = [&](const std::string& text, const char* none) {
        return !text.empty() ? text : std::string(any_gpu ? none : kNotMeasured);
    };
    pages.readme["summary"] = summary(all);
    Regions& speed = pages.speed;
    speed["machines"] = machines(shelf, commit, any_gpu);
    speed["ladder"] = of_gpus([](const Shown& shown) {
        const std::string table = bench::ladder_table(*shown.run);
        return table.empty() ? ""
                             : image(from_docs, shown.ladder, "the ladder") +
                                   workload_line(shown) + table;
    });
    speed["waterfall"] = of_gpus([](const Shown& shown) {
        return image(from_docs, shown.waterfall, "the waterfall") +
               bench::waterfall_table(*shown.run);
    });
    speed["roofline"] = of_gpus([](const Shown& shown) {
        return image(from_docs, shown.roofline, "the roofline");
    });
    speed["calibration"] = run_by_run(
        all, {"gpu", "executor", "cpu"}, kNotMeasured,
        [](const Shown& shown) { return bench::calibration_table(*shown.run); });
    speed["counts"] =
        run_by_run(all, {"executor"}, "Nothing was counted on the CPU executor yet.",
                   [&](const Shown& shown) { return counts(shown, any_gpu); });
    speed["memory"] =
        run_by_run(all, {"gpu", "executor", "cpu"}, "Nothing was counted yet.",
                   [](const Shown& shown) { return bench::kept_table(*shown.run); });
    speed["reference"] = run_by_run(
        all, {"executor", "cpu"}, "The reference was not timed yet.",
        [](const Shown& shown) {
            const std::string table = bench::ladder_table(*shown.run);
            return table.empty()
                       ? ""
                       : image(from_docs, shown.ladder, "the reference, part by part") +
                             workload_line(shown) + table;
        });
    speed["stages"] =
        told_or(visit_by_visit(leaders, bench::stages_table), "Nothing was checked.");
    speed["disagreements"] = told_or(visit_by_visit(leaders, bench::disagreements_table),
                                     "No such test was run.");
    speed["peers"] =
        told_or(visit_by_visit(leaders, bench::peers_table), "No peer was timed.");
    return pages;
}

}  // namespace moe
