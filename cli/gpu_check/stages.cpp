// stages.cpp: the one table of what `moe gpu-check` runs, and for how long at most. To
// change a command line, change it here.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "cli/gpu_check/conformance.h"
#include "cli/gpu_check/gtest_output.h"
#include "cli/gpu_check/judges.h"
#include "cli/gpu_check/sanitizer.h"
#include "cli/gpu_check/stage.h"
#include "cli/gpu_check/tools.h"
#include "cli/places.h"
#include "core/tier.h"
#include "distributed/communicators/nccl_communicator.h"

namespace moe::gpu_check {
namespace {

using Words = std::vector<std::string>;

// The tests of gpu-check itself need a shell, and would start it within itself.
constexpr const char* kNotHere = "GpuCheck*";
constexpr const char* kDryTests = "*RouterTest.*/reference_cpu_*";

// A dozen kernels: the first launch of each. Sectors of global loads and stores with
// their requests, conflicts of shared memory, bytes of DRAM, tensor cores at work.
constexpr const char* kMetrics =
    "gpu__time_duration.sum,"
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum,"
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum,"
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum,"
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum,"
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum,"
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum,"
    "dram__bytes_read.sum,dram__bytes_write.sum,"
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active";

// torch.compile alone takes longer than all the others: a visit of its own has it.
constexpr const char* kPeers = "torch_grouped_mm,transformers_grouped_mm,expert_loop";

Words& append(Words& words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
}

/// This program with these words.
Words moe_with(const Words& words) {
    Words result = {moe_program()};
    return append(result, words);
}

/// Safetensors files of a folder, at most so many.
Words files_of(const std::string& folder, std::size_t most = 1000) {
    Words files;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
        if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    files.resize(std::min(files.size(), most));
    return files;
}

enum class Over { one_rank, ranks };

/// "naive_gpu,…": the tiers that work on the device, each with `suffix`.
std::string gpu_tiers(Over over = Over::one_rank, const std::string& suffix = "") {
    std::string names;
    for (const Tier* tier : tiers())
        if (tier->memory_space() == MemorySpace::device &&
            (tier->works_on_ranks() || over == Over::one_rank))
            names += (names.empty() ? "" : ",") + tier->name() + suffix;
    return names;
}

Plan run_facts(const Setting& setting) {
    return {.programs = {{.arguments = moe_with({"info", "--json"}),
                          .output = setting.stem + ".info.json"}}};
}

std::string gtest_file(const Setting& setting) {
    return setting.stem + ".gtest.json";
}

Plan run_tests(const Setting& setting) {
    const std::string filter =
        setting.dry ? kDryTests : fmt::format("-{}:{}", kConformanceTests, kNotHere);
    return {.programs = {{.arguments = {tests_program(), "--gtest_filter=" + filter,
                                        "--gtest_output=json:" + gtest_file(setting)}}}};
}

Finding judge_all_tests(const Setting& setting, const std::vector<Trace>& traces) {
    return judge_tests(traces.front(), gtest_file(setting));
}

Plan run_verify(const Setting& setting) {
    const std::string golden = golden_folder();
    const auto verify = [&](const char* label, const Words& files, const Words& flags) {
        Words words = moe_with({"verify"});
        append(append(words, files), {"--json"});
        return Program{.label = label,
                       .arguments = append(words, flags),
                       .output = fmt::format("{}.{}.jsonl", setting.stem, label)};
    };
    if (setting.dry)
        return {.programs = {
                    verify("layers", files_of(golden, 2), {"--tier", "reference_cpu"})}};
    return {.programs = {verify("layers", files_of(golden), {"--tier", gpu_tiers()}),
                         verify("ranks", files_of(golden + "/ranks"),
                                {"--tier", gpu_tiers(Over::ranks),
                                 "--moe-token-dispatcher-type", "all"})}};
}

std::string bench_file(const Setting& setting) {
    return setting.stem + ".bench.json";
}

Plan run_bench(const Setting& setting) {
    Words words =
        moe_with({"bench", "--short", "--report", "none", "--json", bench_file(setting)});
    if (setting.dry) append(words, {"--scale", "16", "--tokens", "64", "--seconds", "1"});
    return {.programs = {{.arguments = words}}};
}

/// Four ranks that share a GPU, as threads; then a rank on every GPU, over NCCL.
Plan run_ranks(const Setting& setting) {
    const Words layer = {"--report",     "none", "--preset",           "mixtral_8x7b",
                         "--scale",      "32",   "--micro-batch-size", "4",
                         "--seq-length", "64"};
    Words threads = moe_with({"compare", "--ranks", "4", "--tier",
                              setting.dry ? "reference_cpu" : gpu_tiers(Over::ranks)});
    Plan plan;
    plan.programs.push_back({.label = "threads", .arguments = append(threads, layer)});
    if (setting.dry || !distributed::NcclSession::missing().empty()) return plan;
    Words processes = moe_with({"compare", "--spawn", std::to_string(device_count())});
    plan.programs.push_back({.label = "nccl", .arguments = append(processes, layer)});
    return plan;
}

Finding judge_ranks(const Setting& setting, const std::vector<Trace>& traces) {
    Finding finding = judge_exit_codes(traces);
    if (finding.verdict != Finding::Verdict::passed) return finding;
    finding.detail = "4 ranks as threads";
    if (traces.size() > 1)
        finding.detail += fmt::format(", {} over NCCL", device_count());
    else
        finding.detail += setting.dry ? "; NCCL: not tried, needs GPUs"
                                      : "; NCCL: " + distributed::NcclSession::missing();
    return finding;
}

std::string counters_file(const Setting& setting) {
    return setting.stem + ".csv";
}

Plan run_counters(const Setting& setting) {
    const std::string ncu = find_tool("ncu");
    if (ncu.empty()) return {.skipped = "ncu: not found"};
    if (setting.dry) return {.skipped = ncu + ": not tried, needs a GPU"};
    Words words = {ncu, "--metrics", kMetrics, "--log-file", counters_file(setting)};
    append(words, {"--csv", "--page", "raw", "--clock-control", "none", "--kernel-id",
                   "::regex:_kernel:1", "--launch-count", "12", "--kill", "yes"});
    append(words, moe_with({"bench", "--short", "--scale", "8", "--tokens", "256",
                            "--seconds", "1", "--no-waterfall", "--report", "none"}));
    return {.programs = {{.arguments = words}}};
}

std::string peers_file(const Setting& setting) {
    return setting.stem + ".peers.json";
}

Plan run_peers(const Setting& setting) {
    const std::string python = find_python_with_torch();
    if (python.empty()) return {.skipped = "python3 with torch: not found"};
    if (setting.dry) return {.skipped = python + ": not tried, needs a GPU"};
    const std::string peers =
        fmt::format("{},{}", kPeers, gpu_tiers(Over::one_rank, ":bf16"));
    return {.programs = {
                {.arguments = {python, peers_script(), "--library", c_library(), "--json",
                               peers_file(setting), "--tokens", "4096", "--seconds", "8",
                               "--rounds", "15", "--only", peers}}}};
}

/// A judge that wants no more than what ran.
auto of_traces(Finding (*judge)(const std::vector<Trace>&)) {
    return [judge](const Setting&, const std::vector<Trace>& traces) {
        return judge(traces);
    };
}

/// A judge that reads a file as well.
auto of_file(Finding (*judge)(const std::vector<Trace>&, const std::string&),
             std::string (*file)(const Setting&)) {
    return [judge, file](const Setting& setting, const std::vector<Trace>& traces) {
        return judge(traces, file(setting));
    };
}

}  // namespace

std::vector<Stage> all_stages() {
    // name, seconds, needs a GPU, what runs, how it is judged, what then; 300 s in all
    return {
        {"facts", 10, false, run_facts, of_traces(judge_facts)},
        {"conformance", 30, true, plan_conformance, judge_conformance, next_conformance},
        {"tests", 70, true, run_tests, judge_all_tests},
        {"verify", 30, true, run_verify, of_traces(judge_verify)},
        {"bench", 60, true, run_bench, of_file(judge_bench, bench_file)},
        {"sanitizer", 40, true, plan_sanitizer, judge_sanitizer},
        {"ranks", 15, true, run_ranks, judge_ranks},
        {"counters", 15, true, run_counters, of_file(judge_counters, counters_file)},
        {"peers", 30, true, run_peers, of_file(judge_peers, peers_file)},
    };
}

}  // namespace moe::gpu_check
