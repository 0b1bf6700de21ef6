/// @file
/// Results with invented numbers, for tests alone: none of them was ever measured.
#pragma once

#include <string>

#include "bench/result.h"

namespace moe::test {

inline bench::Measurement invented_measurement(const std::string& subject,
                                               const std::string& pass,
                                               const std::string& spec, double ms,
                                               double flops) {
    bench::Measurement m;
    m.subject = subject;
    m.pass = pass;
    m.spec = spec;
    m.ms = {.median = ms, .p10 = 0.9 * ms, .p90 = 1.25 * ms, .count = 50};
    m.flops = flops;
    m.bytes = subject == "router" ? 2e7 : 6.1e8;
    m.floor_ms = m.bytes / 2.5e9 + flops / 1e12;
    m.launches = 14;
    m.host_waits = 1;
    m.peak_device_bytes = std::int64_t{3} << 30;
    if (subject == "experts") {
        m.kept_bytes = 4096 * 30000;
        m.kept_bytes_by_formula = 4096 * 28672;
        m.kept_formula = "TH + 2TKF";
    }
    m.error = 2e-3;
    m.bound = 6e-3;
    return m;
}

/// A run on a GPU that does not exist, in which the made-up "quick_gpu" is faster.
inline bench::Run invented_run() {
    bench::Run run;
    run.workload = {.model = "qwen3_30b_a3b",
                    .routing = "hot:8",
                    .tokens = 4096,
                    .H = 2048,
                    .E = 128,
                    .K = 8,
                    .F = 768,
                    .Fs = 0,
                    .rows = 32768,
                    .min_rows = 0,
                    .median_rows = 250,
                    .max_rows = 1999};
    run.reference = "reference_cpu:fp32";
    run.product = "cuBLAS bf16 8192 x 8192 x 8192";
    run.before = {.copy_gb_per_s = 2500.0, .product_tflops = 700.0};
    run.after = {.copy_gb_per_s = 2490.0, .product_tflops = 690.0};
    const std::string naive = "naive_gpu:bf16", quick = "quick_gpu:bf16";
    const auto both_passes = [&](const std::string& subject, double flops, double slow,
                                 double fast) {
        for (const auto& [spec, ms] : {std::pair{naive, slow}, {quick, fast}}) {
            run.measurements.push_back(
                invented_measurement(subject, "forward", spec, ms, flops));
            run.measurements.push_back(
                invented_measurement(subject, "backward", spec, 2.1 * ms, 2 * flops));
        }
    };
    both_passes("router", 2.1e9, 0.9, 0.031);
    both_passes("dispatcher", 0.0, 1.1, 0.6);
    both_passes("experts", 3.1e11, 230.0, 0.9);
    both_passes("layer", 3.12e11, 233.0, 1.7);
    const std::string rest = " experts=naive_gpu:bf16 shared_experts=naive_gpu:bf16";
    run.waterfall = {
        invented_measurement("layer", "both", naive, 700.0, 9.4e11),
        invented_measurement("layer", "both",
                             "router=quick_gpu:bf16 dispatcher=naive_gpu:bf16" + rest,
                             698.0, 9.4e11),
        invented_measurement("layer", "both",
                             "router=quick_gpu:bf16 dispatcher=quick_gpu:bf16" + rest,
                             699.5, 9.4e11),
        invented_measurement("layer", "both", quick, 5.1, 9.4e11)};
    return run;
}

/// A visit to that GPU.
inline bench::Result invented_result() {
    bench::Result result;
    result.created = "2026-01-02T03:04:05Z";
    result.commit = "0123456789ab";
    result.kind = "gpu";
    result.device = "Invented GPU 80GB";
    result.facts = {{"driver", "1.2.3"}, {"clocks", "idle | busy <fast>"}};
    result.runs = {invented_run()};
    result.stages = {{"tests", "passed", 61.5, "2289 tests"},
                     {"sanitizer", "over budget", 0.0, ""}};
    result.disagreements = {{"Numbers.Rounds", "expected 1, got 2"}};
    result.peers = {{.peer = "some library",
                     .pass = "forward",
                     .model = "qwen3_30b_a3b",
                     .routing = "hot:8",
                     .tokens = 4096,
                     .ms = {.median = 3.4, .p10 = 3.3, .p90 = 3.5, .count = 20},
                     .tflops = 92.0}};
    return result;
}

/// A visit to no GPU: kernels ran on the CPU executor and were counted.
inline bench::Result invented_counts() {
    bench::Result result = invented_result();
    result.kind = "executor";
    result.device = "Invented CPU";
    result.peers.clear();
    result.disagreements.clear();
    bench::Run& run = result.runs[0];
    run.before = run.after = {};
    for (auto* measurements : {&run.measurements, &run.waterfall})
        for (bench::Measurement& m : *measurements) {
            m.emulated = true;
            m.ms = {};
            m.floor_ms = {};
        }
    return result;
}

}  // namespace moe::test
