// `moe results`: the shelf, the markers in pages, and what the pages then say. All
// numbers are invented; see results_support.h.

#include <nlohmann/json.hpp>

#include "cli/files.h"
#include "cli/markers.h"
#include "cli/measure/result_shelf.h"
#include "core/error.h"
#include "tests/bench/results_support.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;

const std::string kClose = "<!-- /moe results -->";

std::string marker(const std::string& name) {
    return "<!-- moe results: " + name + " -->";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// ------------------------------------------------------------------ markers

TEST(Markers, ReplaceWhatStandsBetweenThemAndNothingElse) {
    const Regions regions = {{"a", "| x |\n"}, {"b", "words\n"}};
    const std::string page = "# Page\n" + marker("a") + "old" + kClose + "\nmiddle " +
                             marker("b") + kClose + " end";
    const std::string once = with_regions("p.md", page, regions);
    EXPECT_EQ(once, "# Page\n" + marker("a") + "\n\n| x |\n\n" + kClose + "\nmiddle " +
                        marker("b") + "\n\nwords\n\n" + kClose + " end");
    EXPECT_EQ(with_regions("p.md", once, regions), once);
}

TEST(Markers, OfAnotherCommandStayAsTheyAre) {
    const std::string profile = "<!-- moe profile: a -->old<!-- /moe profile -->";
    const std::string page = marker("a") + kClose + profile;
    const std::string once = with_regions("p.md", page, {{"a", "new"}});
    EXPECT_TRUE(once.ends_with(kClose + profile));
    EXPECT_TRUE(contains(with_regions("p.md", once, {{"a", "counts"}}, "profile"),
                         "<!-- moe profile: a -->\n\ncounts\n\n<!-- /moe profile -->"));
}

TEST(Markers, AreRefusedInOneLine) {
    const Regions regions = {{"a", ""}, {"b", ""}};
    const auto refusal = [&](const std::string& page) -> std::string {
        try {
            with_regions("p.md", page, regions);
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    const std::string a = marker("a"), b = marker("b"), both = a + kClose + b + kClose;
    EXPECT_EQ(refusal(both), "");
    EXPECT_TRUE(contains(refusal(a + kClose), "p.md = " + b + ": must stand in"));
    EXPECT_TRUE(contains(refusal(both + a + kClose), a + ": must stand only once"));
    EXPECT_TRUE(contains(refusal(a + b + kClose), a + ": must be closed by"));
    EXPECT_TRUE(contains(refusal(a + kClose + b), b + ": must be closed by"));
    EXPECT_TRUE(contains(refusal(both + kClose), "closes a region that was not opened"));
    EXPECT_TRUE(contains(refusal(both + marker("c") + kClose), "this page are a, b"));
    EXPECT_TRUE(contains(refusal("<!-- moe results: a"), "must end on its own line"));
}

// ------------------------------------------------------------------ the command

/// A project of two pages, without results.
class ResultPages : public CliTest {
  protected:
    ResultPages() {
        fs::create_directories(folder_ / "docs");
        write("README.md", "# Invented\n\n" + marker("summary") + "\n" + kClose + "\n");
        std::string speed = "# Speed\n\n";
        for (const char* name :
             {"machines", "ladder", "waterfall", "roofline", "calibration", "memory",
              "peers", "counts", "reference", "stages", "disagreements"})
            speed += marker(name) + "\n" + kClose + "\n\n";
        write("docs/speed.md", speed);
    }

    std::vector<std::string> results(const std::string& flags) const {
        std::vector<std::string> words = split("results " + flags);
        words.insert(words.end(), {"--root", folder_.string()});
        return words;
    }
    Output run(const std::string& flags = "") const { return moe(results(flags)); }

    void add(const bench::Result& result) const {
        const std::string file =
            write("visit.json", bench::to_json(result).dump(2) + "\n");
        const Output output = run("--add " + file);
        ASSERT_EQ(output.code, kExitOk) << output.err;
    }
    std::string speed() const { return read(path("docs/speed.md")); }
    std::string readme() const { return read(path("README.md")); }

    /// The files of the project and what they hold.
    std::map<std::string, std::string> everything() const {
        std::map<std::string, std::string> files;
        for (const auto& entry : fs::recursive_directory_iterator(folder_))
            if (entry.is_regular_file()) files[entry.path()] = read(entry.path());
        return files;
    }
};

constexpr const char* kGpuFile =
    "docs/results/invented-gpu-80gb/2026-01-02-0123456789ab.json";

TEST_F(ResultPages, SayWhenNothingWasMeasured) {
    EXPECT_EQ(run("--check").code, kExitDiffers);
    ASSERT_EQ(run().code, kExitOk);
    EXPECT_TRUE(contains(readme(), "Not measured on a GPU yet."));
    EXPECT_TRUE(contains(speed(), "Nothing was counted"));
    EXPECT_EQ(run("--check").code, kExitOk);
    EXPECT_EQ(run().out, "nothing changed\n");
}

TEST_F(ResultPages, ShowWhatWasCountedWhereNoGpuWasMeasured) {
    add(invented_counts());
    ASSERT_EQ(run().code, kExitOk);
    EXPECT_TRUE(contains(speed(), "Counted on the CPU executor; not measured on a GPU"));
    EXPECT_TRUE(contains(speed(), "| experts | forward | naive_gpu:bf16 | 14 | 1 |"));
    EXPECT_TRUE(
        contains(speed(), "| naive_gpu:bf16 | 30,000 | 28,672 | TH + 2TKF + m |"))
        << speed();
    EXPECT_FALSE(contains(speed(), "ms (p10"));
    EXPECT_TRUE(contains(readme(), "Not measured on a GPU yet.** Counted instead"));
    EXPECT_TRUE(contains(readme(),
                         "(docs/results/executor/executor-qwen3_30b_a3b-4096-hot-8-"
                         "counts.svg)"));
    EXPECT_TRUE(fs::exists(
        path("docs/results/executor/executor-qwen3_30b_a3b-4096-hot-8-counts.svg")));
}

TEST_F(ResultPages, ShowWhatWasMeasured) {
    add(invented_result());
    ASSERT_TRUE(fs::exists(path(kGpuFile)));
    ASSERT_EQ(run().code, kExitOk);
    const std::string page = speed();
    for (const char* words :
         {"| experts | forward | quick_gpu:bf16 | 0.900 (0.810", "137 times faster",
          "| 2500 | 2490 |", "some library", "over budget", "expected 1, got 2",
          "(results/invented-gpu-80gb/"
          "invented-gpu-80gb-qwen3_30b_a3b-4096-hot-8-roofline.svg)"})
        EXPECT_TRUE(contains(page, words)) << words;
    EXPECT_FALSE(contains(page, "another commit"));
    EXPECT_FALSE(contains(readme(), "Not measured"));
    EXPECT_TRUE(contains(readme(), "waterfall.svg"));
    EXPECT_EQ(run("--check").code, kExitOk);
    for (const auto& [name, text] : everything()) EXPECT_FALSE(name.ends_with(".part"));
}

TEST_F(ResultPages, SeeThatANumberChanged) {
    add(invented_result());
    ASSERT_EQ(run().code, kExitOk);
    const std::string data = read(path(kGpuFile)), page = speed();

    std::string changed = data;
    changed.replace(changed.find("\"median\": 3.4"), 13, "\"median\": 3.45");
    write(kGpuFile, changed);
    Output output = run("--check");
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_TRUE(contains(output.out, "docs/speed.md")) << output.out;
    EXPECT_EQ(speed(), page);  // --check writes nothing

    write(kGpuFile, data);
    std::string typed = page;
    typed.replace(typed.find("137 times"), 3, "138");
    write("docs/speed.md", typed);
    EXPECT_EQ(run("--check").code, kExitDiffers);
    ASSERT_EQ(run().code, kExitOk);
    EXPECT_EQ(speed(), page);

    write("docs/results/invented-gpu-80gb/old-ladder.svg", "<svg/>");
    output = run("--check");
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_TRUE(contains(output.out, "old-ladder.svg: no page shows it")) << output.out;
}

TEST_F(ResultPages, NeverOverwriteAResult) {
    add(invented_result());
    const auto before = everything();
    bench::Result other = invented_result();
    other.runs.clear();
    const std::string file = write("other.json", bench::to_json(other).dump());
    EXPECT_TRUE(IsBadInput(results("--add " + file), {"--add = ", "is there already"}));
    fs::remove(file);
    EXPECT_EQ(everything(), before);
}

TEST_F(ResultPages, LeadWithTheNewestAndListTheOthers) {
    bench::Result newer = invented_result();
    newer.created = "2026-02-01T00:00:00Z";
    newer.runs[0].measurements[10].ms->median = 0.9;
    newer.runs[0].waterfall.pop_back();
    add(invented_result());
    add(newer);
    nlohmann::json foreign = bench::to_json(invented_result());
    foreign["version"] = bench::kResultVersion + 1;
    foreign["surprise"] = true;
    write("docs/results/invented-gpu-80gb/2026-03-01-later.json", foreign.dump());
    ASSERT_EQ(run().code, kExitOk);
    const std::string page = speed();
    EXPECT_TRUE(contains(page, "* **Invented GPU 80GB**: [2026-02-01-0123456789ab.json]"))
        << page;
    EXPECT_TRUE(contains(page, "  * older: [2026-01-02-0123456789ab.json]"));
    EXPECT_TRUE(contains(page,
                         "  * [2026-03-01-later.json](results/invented-gpu-80gb/"
                         "2026-03-01-later.json): version 3 of the format"));
    EXPECT_FALSE(contains(page, "137 times faster"));
}

TEST_F(ResultPages, LabelResultsOfAnotherCommit) {
    add(invented_result());
    ASSERT_EQ(run("--commit 0123456789ab").code, kExitOk);
    EXPECT_FALSE(contains(speed(), "another commit"));
    ASSERT_EQ(run("--commit ba9876543210").code, kExitOk);
    EXPECT_TRUE(contains(speed(), "commit 0123456789ab (another commit than this page"));
}

TEST_F(ResultPages, WriteNothingWhenAnythingIsWrong) {
    add(invented_result());
    const auto refuses = [&](const std::vector<std::string>& words,
                             const std::string& flags = "") {
        const auto before = everything();
        const auto bad = IsBadInput(results(flags), words);
        EXPECT_EQ(everything(), before);
        return bad;
    };
    const std::string page = speed();
    write("docs/speed.md", page + marker("peers") + kClose);
    EXPECT_TRUE(refuses({"docs/speed.md = ", "peers", "must stand only once"}));
    write("docs/speed.md", page.substr(0, page.rfind(kClose)));
    EXPECT_TRUE(refuses({"docs/speed.md = ", "must be closed by"}));
    write("docs/speed.md", "# Speed\n");
    EXPECT_TRUE(refuses({"docs/speed.md = ", "must stand in the page"}, "--check"));
    fs::remove(path("docs/speed.md"));
    EXPECT_TRUE(refuses({"page = ", "speed.md: must be a readable file"}));
    write("docs/speed.md", page);

    write("docs/results/executor.json", "{}");  // no device's folder: not ours
    EXPECT_EQ(run().code, kExitOk);
    const std::string stray = "docs/results/invented-gpu-80gb/2026-01-02-other.json";
    write(stray, read(path(kGpuFile)));
    EXPECT_TRUE(refuses({"result = " + stray + ": belongs in ", kGpuFile}));
    write(stray, "{");
    EXPECT_TRUE(refuses({stray + " = ", "must be JSON"}, "--check"));
    fs::remove(path(stray));

    EXPECT_TRUE(refuses({"--add = ", "must be a readable file"}, "--add missing.json"));
    const std::string file = write("not.json", "[]");
    EXPECT_TRUE(refuses({"not.json = []: must be an object"}, "--add " + file));
    EXPECT_TRUE(refuses({"--add"}, "--check --add " + file));
    EXPECT_TRUE(IsBadInput({"results", "--root", path("nowhere")}, {"--root = "}));
    EXPECT_TRUE(IsBadInput({"results", "--root", ""}, {"--root = : "}));
    EXPECT_TRUE(IsBadInput({"results", "--add", ""}, {"--add = : "}));
}

TEST_F(ResultPages, WriteAllFilesOrNone) {
    const std::string a = path("made/a.txt"), b = write("b.txt", "a file") + "/b.txt";
    const auto failure = write_all({{a, "new"}, {b, "new"}});
    ASSERT_TRUE(failure.has_value());
    EXPECT_EQ(failure->path, b);
    EXPECT_FALSE(fs::exists(path("made")));
    for (const auto& [name, text] : everything()) EXPECT_FALSE(name.ends_with(".part"));
    EXPECT_FALSE(write_all({{a, "new"}}).has_value());
    EXPECT_EQ(read(a), "new");
}

// The pages in the source tree say what the results in it say.
TEST(ProjectPages, AreUpToDate) {
    const Output output = moe("results --check");
    EXPECT_EQ(output.code, kExitOk) << output.out << output.err;
}

}  // namespace
}  // namespace moe::test
