// Results as data: to JSON and back, what is refused, and what tables and pictures say.
// All numbers are invented; see results_support.h.

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "bench/pictures.h"
#include "bench/result_words.h"
#include "bench/tables.h"
#include "cli/files.h"
#include "core/error.h"
#include "tests/bench/results_support.h"

namespace moe::test {
namespace {

using namespace moe::bench;
using nlohmann::json;
using Pointer = json::json_pointer;

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

/// The message with which a result is refused; "" when it is taken.
std::string refusal(const json& result) {
    try {
        result_from_json(result, "r.json");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

/// The refusal of the invented result after one change.
std::string refusal_of(const std::string& pointer, const json& value) {
    json result = to_json(invented_result());
    result[Pointer(pointer)] = value;
    return refusal(result);
}

TEST(Results, GoToJsonAndBack) {
    for (const Result& result : {invented_result(), invented_counts()}) {
        const std::string text = to_json(result).dump(2);
        const Result back = result_from_json(parse_json("r.json", text), "r.json");
        EXPECT_EQ(to_json(back).dump(2), text);
        EXPECT_EQ(back.runs[0].workload.max_rows, 1999);
        EXPECT_EQ(back.runs[0].measurements.size(), 16u);
        EXPECT_EQ(back.facts.at("driver"), "1.2.3");
    }
    const json result = to_json(invented_result());
    EXPECT_EQ(result["format"], "moe-results");
    EXPECT_EQ(result["version"], kResultVersion);
    EXPECT_TRUE(json(to_json(invented_counts()))["runs"][0]["before"].is_null());
}

TEST(Results, WriteRatesForOthersAndReadThemNot) {
    json result = to_json(invented_result());
    json& forward = result["runs"][0]["measurements"][8];  // experts, naive_gpu
    EXPECT_NEAR(forward["tflops"].get<double>(), 3.1e11 / 0.230 / 1e12, 1e-9);
    EXPECT_NEAR(forward["gb_per_s"].get<double>(), 6.1e8 / 0.230 / 1e9, 1e-9);
    forward["tflops"] = "fast";
    EXPECT_EQ(refusal(result), "");
    const json counted = to_json(invented_counts());
    EXPECT_FALSE(counted["runs"][0]["measurements"][0].contains("tflops"));
}

TEST(Results, NameWhatIsMissingOrUnknown) {
    const json result = to_json(invented_result());
    const json flat = result.flatten();
    for (const auto& [pointer, value] : flat.items()) {
        const Pointer at(pointer);
        const std::string name = at.back();
        const json& parent = result[at.parent_pointer()];
        if (!parent.is_object() || contains(pointer, "/facts")) continue;
        if (name == "gb_per_s" || (name == "tflops" && contains(pointer, "/runs/")))
            continue;  // derived
        json lacking = result;
        lacking[at.parent_pointer()].erase(name);
        const std::string message = refusal(lacking);
        EXPECT_TRUE(message.starts_with("r.json ")) << pointer << ": " << message;
        EXPECT_TRUE(contains(message, name + " = ")) << pointer << ": " << message;
    }
    EXPECT_EQ(refusal_of("/runs/0/workload/Z", 3),
              "r.json runs[0].workload.Z = 3: no such field");
    EXPECT_EQ(refusal_of("/colour", "red"), "r.json colour = \"red\": no such field");
}

TEST(Results, NameWhatIsWrong) {
    const std::string measurement = "/runs/0/measurements/2";
    const auto refuses = [](const std::string& pointer, const json& value,
                            const std::string& words) {
        const std::string message = refusal_of(pointer, value);
        return contains(message, words) && message.starts_with("r.json ")
                   ? testing::AssertionSuccess()
                   : testing::AssertionFailure() << "\"" << message << "\"";
    };
    EXPECT_TRUE(refuses(measurement + "/ms/median", -1.0,
                        "runs[0].measurements[2].ms.median = -1: must be a finite"));
    EXPECT_TRUE(refuses(measurement + "/ms/median", 0.0, "must be above 0"));
    EXPECT_TRUE(refuses(measurement + "/ms/median", nullptr, "must be a number"));
    EXPECT_TRUE(refuses(measurement + "/ms/median", "1", "must be a number"));
    EXPECT_TRUE(refuses(measurement + "/ms/p10", 1e9, "must be at most the median"));
    EXPECT_TRUE(refuses(measurement + "/ms/p90", 0.0, "must be at least the median"));
    EXPECT_TRUE(refuses(measurement + "/ms/count", 0, "must be at least 1"));
    EXPECT_TRUE(refuses(measurement + "/ms", 3.0, "ms = 3.0: must be an object"));
    EXPECT_TRUE(refuses(measurement + "/launches", 1.5, "must be a whole number"));
    EXPECT_TRUE(refuses(measurement + "/launches", -1, "must be a whole number"));
    EXPECT_TRUE(refuses(measurement + "/launches", 1e300, "must be a whole number"));
    EXPECT_TRUE(refuses(measurement + "/launches", 18446744073709551615u, "whole"));
    EXPECT_TRUE(refuses(measurement + "/subject", "attention", "allowed are router"));
    EXPECT_TRUE(refuses(measurement + "/pass", "sideways", "allowed are forward"));
    EXPECT_TRUE(refuses(measurement + "/emulated", 1, "must be true or false"));
    EXPECT_TRUE(refuses(measurement + "/emulated", true, "is never timed"));
    EXPECT_TRUE(refuses(measurement + "/error", 0.5, "wrong values have no time"));
    EXPECT_TRUE(refuses("/runs/0/before/copy_gb_per_s", 0, "must be above 0"));
    EXPECT_TRUE(refuses("/runs/0/after/product_tflops", 0, "above 0, or null"));
    EXPECT_TRUE(refuses("/runs", 7, "must be a list"));
    EXPECT_TRUE(refuses("/facts/driver", 7, "facts.driver = 7: must be text"));
    EXPECT_TRUE(refuses("/stages/0/status", "perhaps", "allowed are passed"));
    EXPECT_TRUE(refuses("/created", "yesterday", "must be UTC"));
    EXPECT_TRUE(refuses("/commit", "../x", "must be 1 to 64 of"));
    EXPECT_TRUE(refuses("/kind", "fpga", "allowed are gpu, executor, cpu"));
    EXPECT_TRUE(refuses("/device", "", "must be named"));
    EXPECT_TRUE(refuses("/format", "other", "must be \"moe-results\""));
    EXPECT_TRUE(refuses("/version", "1", "must be a whole number"));
    EXPECT_TRUE(refuses("/version", 7, "version = 7: this build reads version 2"));
    EXPECT_EQ(refusal(json::array()), "r.json = []: must be an object");
}

TEST(Results, WriteNothingThatCouldNotBeRead) {
    for (const double bad : {-1.0, std::numeric_limits<double>::infinity(),
                             std::numeric_limits<double>::quiet_NaN()}) {
        Result result = invented_result();
        result.runs[0].waterfall[1].ms->median = bad;
        EXPECT_THROW(to_json(result), InputError) << bad;
    }
    Result result = invented_counts();
    result.runs[0].measurements[0].ms = {.median = 1, .p10 = 1, .p90 = 1, .count = 1};
    EXPECT_THROW(to_json(result), InputError);
}

TEST(ResultWords, SaySpecsAndWhatChanged) {
    EXPECT_EQ(spec_in_words("naive_gpu:bf16"), "naive_gpu:bf16");
    const std::string mix =
        "router=naive_gpu:fp32 dispatcher=naive_gpu:bf16 experts=naive_gpu:bf16 "
        "shared_experts=reference_cpu:fp64";
    EXPECT_EQ(spec_in_words(mix),
              "naive_gpu:bf16, router fp32, shared_experts reference_cpu:fp64");
    EXPECT_EQ(what_changed("naive_gpu:bf16", mix),
              "router → naive_gpu:fp32; shared_experts → reference_cpu:fp64");
    EXPECT_EQ(what_changed(mix, mix), "nothing");
    EXPECT_EQ(what_changed("naive_gpu:fp32", "naive_gpu:bf16"),
              "everything → naive_gpu:bf16");
    EXPECT_EQ(slug("NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3");
    EXPECT_EQ(slug("../é (TM)"), "tm");
}

TEST(ResultWords, SayNumbersWithThreeDigits) {
    EXPECT_EQ(three_digits(0.0), "0");
    EXPECT_EQ(three_digits(0.01234), "0.0123");
    EXPECT_EQ(three_digits(1.0), "1.00");
    EXPECT_EQ(three_digits(12.34), "12.3");
    EXPECT_EQ(three_digits(99.97), "100");
    EXPECT_EQ(three_digits(12345.6), "12346");
    EXPECT_EQ(share(0.624), "62 %");
    EXPECT_EQ(share(0.0042), "0.4 %");
    EXPECT_EQ(times_faster(2.0), "2.00 times faster");
    EXPECT_EQ(times_faster(0.5), "2.00 times slower");
    EXPECT_EQ(times_faster(1.004), "as fast as before");
}

TEST(ResultTables, TellTimesOnlyWhereSomethingWasTimed) {
    const auto timed = invented_run(), counted = invented_counts().runs[0];
    const std::string ladder = ladder_table(timed);
    EXPECT_TRUE(contains(ladder,
                         "| experts | forward | quick_gpu:bf16 | 0.900 (0.810 – "
                         "1.12) | 344 (49 %) | 678 (27 %) | 62 % | 14 | 1 | "
                         "3.22 GB | 33 % |"))
        << ladder;
    EXPECT_TRUE(contains(ladder,
                         "| dispatcher | forward | quick_gpu:bf16 | 0.600 (0.540 "
                         "– 0.750) | – |"))
        << ladder;
    EXPECT_EQ(counts_table(timed), "");
    EXPECT_EQ(ladder_table(counted), "");
    EXPECT_EQ(waterfall_table(counted), "");
    EXPECT_EQ(calibration_table(counted), "");
    EXPECT_TRUE(contains(counts_table(counted),
                         "| experts | forward | naive_gpu:bf16 | 14 | 1 | 3.22 GB | 610 "
                         "MB | 33 % |"));
    EXPECT_FALSE(contains(counts_table(counted), "ms"));
    EXPECT_TRUE(contains(waterfall_table(timed), "137 times faster |"));
    EXPECT_TRUE(contains(calibration_table(timed), "| 2500 | 2490 | -0.4 % |"));
}

TEST(Results, KeepWhatIsWrongWithoutATime) {
    Result result = invented_counts();
    Measurement& wrong = result.runs[0].measurements[0];
    wrong.error = std::numeric_limits<double>::infinity();
    const json written = to_json(result);
    EXPECT_TRUE(written["runs"][0]["measurements"][0]["error"].is_null());
    const Result back = result_from_json(written, "r.json");
    EXPECT_EQ(back.runs[0].measurements[0].error, wrong.error);
    EXPECT_TRUE(contains(counts_table(back.runs[0]), "| 20.0 MB | wrong |"));
}

// The reference, timed on the CPU beside a GPU, is not below the GPU's ceilings.
TEST(ResultTables, ShareCeilingsOnlyWithWhatRanBelowThem) {
    auto run = invented_run();
    Measurement m =
        invented_measurement("experts", "forward", "reference_cpu:fp32", 1000.0, 3.1e11);
    m.floor_ms = {};
    run.measurements = {m};
    EXPECT_TRUE(contains(ladder_table(run), "| 0.310 | 0.610 | – | 14 |"))
        << ladder_table(run);
    EXPECT_EQ(roofline_picture(run, ""), "");
    EXPECT_NE(ladder_picture(run, ""), "");
}

TEST(ResultTables, TellWhatAVisitFound) {
    Result result = invented_result();
    EXPECT_TRUE(contains(facts_table(result), "| clocks | idle \\| busy &lt;fast&gt; |"));
    EXPECT_TRUE(contains(stages_table(result), "| sanitizer | over budget | 0.0 |  |"));
    EXPECT_TRUE(contains(disagreements_table(result), "expected 1, got 2"));
    EXPECT_TRUE(contains(peers_table(result), "| 1.70 (quick_gpu:bf16) | 2.00 |"));
    result.peers[0].tokens = 8;
    EXPECT_TRUE(contains(peers_table(result), "| – | – |"));
    result.disagreements.clear();
    EXPECT_TRUE(contains(disagreements_table(result), "agreed in every test"));
    result.stages.clear();
    EXPECT_EQ(disagreements_table(result), "");
}

// Names in results are somebody else's.
TEST(ResultTables, EscapeWhatOthersWrote) {
    EXPECT_EQ(cell("a|b\n<!-- x -->`@c"), "a\\|b·&lt;!-- x --&gt;\\`\\@c");
}

TEST(ResultPictures, StandAlone) {
    const auto timed = invented_run(), counted = invented_counts().runs[0];
    const std::string device = "Invented <GPU> & Co";
    for (const std::string& svg :
         {ladder_picture(timed, device), waterfall_picture(timed, device),
          roofline_picture(timed, device), counts_picture(counted, device)}) {
        EXPECT_TRUE(svg.starts_with("<svg xmlns='http://www.w3.org/2000/svg'"));
        EXPECT_TRUE(svg.ends_with("</svg>\n"));
        EXPECT_TRUE(contains(svg, "prefers-color-scheme: dark"));
        EXPECT_TRUE(contains(svg, "Invented &lt;GPU&gt; &amp; Co"));
        for (const char* foreign : {"<script", "href", "url(", "nan", "inf'", "var("})
            EXPECT_FALSE(contains(svg, foreign)) << foreign;
    }
    const std::string ladder = ladder_picture(timed, device);
    const std::size_t number = ladder.find(">0.900 ms<");
    ASSERT_NE(number, std::string::npos);
    const std::size_t line = ladder.rfind('\n', number);
    EXPECT_EQ(ladder.find("<rect class='ground'", ladder.rfind('\n', line - 1)),
              ladder.rfind('\n', line - 1) + 1)
        << "the grid's lines end beside a number";
    EXPECT_TRUE(contains(roofline_picture(timed, device), "not here: dispatcher"));
    EXPECT_TRUE(contains(waterfall_picture(timed, device), ">router → quick_gpu:bf16<"));
}

TEST(ResultPictures, DrawNoTimesOfTheExecutor) {
    const auto timed = invented_run(), counted = invented_counts().runs[0];
    EXPECT_EQ(ladder_picture(counted, ""), "");
    EXPECT_EQ(waterfall_picture(counted, ""), "");
    EXPECT_EQ(roofline_picture(counted, ""), "");
    EXPECT_EQ(counts_picture(timed, ""), "");
    EXPECT_FALSE(contains(counts_picture(counted, ""), " ms<"));
}

TEST(BarChart, ShowsMediansInEighthsOfACell) {
    const std::string chart = bar_chart(invented_run());
    const std::string full = "████████████████████████████████████████";
    EXPECT_TRUE(contains(chart, "dispatcher, forward\n  naive_gpu:bf16      1.10 ms  " +
                                    full +
                                    "\n  quick_gpu:bf16     0.600 ms  "
                                    "█████████████████████▊\n"))
        << chart;
    EXPECT_FALSE(contains(bar_chart(invented_counts().runs[0]), "█"));
}

}  // namespace
}  // namespace moe::test
