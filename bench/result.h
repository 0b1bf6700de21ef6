/// @file
/// What was measured, as data: one file for each visit to a machine. Tables and pictures
/// are made from these files; no number is typed by hand.
///
/// JSON, format "moe-results", version kResultVersion. Whoever adds, renames or
/// reinterprets a field raises the version; files of another version are shown by name,
/// and not read.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace moe::bench {

inline constexpr int kResultVersion = 2;

/// Milliseconds of timed samples.
struct Timing {
    double median = 0.0, p10 = 0.0, p90 = 0.0;
    int count = 0;
};

/// The machine's own ceilings, measured in the same run.
struct Calibration {
    double copy_gb_per_s = 0.0;  ///< bytes read plus bytes written
    /// TFLOP/s of the best dense product at hand; nothing where the library is missing.
    std::optional<double> product_tflops;
};

/// A part of the layer in one supplier, forward, backward or both.
struct Measurement {
    /// "router", "dispatcher", "experts", "shared_experts" or "layer"
    std::string subject;
    std::string pass;  ///< "forward", "backward" or "both"
    std::string spec;  ///< "naive_gpu:bf16", or a mix: "router=… dispatcher=… …"
    bool emulated = false;  ///< ran on the CPU executor: counted, never timed
    std::optional<Timing> ms;
    double flops = 0.0;  ///< of its matrix products
    double bytes = 0.0;  ///< the least that must move, see core/floors.h
    /// Milliseconds that nothing with these ceilings can be under.
    std::optional<double> floor_ms;
    std::int64_t launches = 0, host_waits = 0, peak_device_bytes = 0;
    /// What the layer keeps from a forward for its backward, see core/kept_bytes.h: in
    /// all, and what of it the tier's formula says, 0 for a mix. Of parts nothing.
    std::int64_t kept_bytes = 0, kept_bytes_by_formula = 0;
    std::string kept_formula;  ///< "TH + 2TKF"
    /// The worst, against the reference; infinite (in JSON null) where values are not
    /// even finite. Of a peer nothing is asked, and its bound is 0.
    double error = 0.0, bound = 0.0;
};

/// What was run.
struct Workload {
    std::string model;    ///< "qwen3_30b_a3b"
    std::string routing;  ///< "balanced", "uniform", "skewed" or "hot:8"
    std::int64_t tokens = 0;
    std::int64_t H = 0, E = 0, K = 0, F = 0, Fs = 0;
    std::int64_t rows = 0;                                     ///< N, after dispatch
    std::int64_t min_rows = 0, median_rows = 0, max_rows = 0;  ///< of an expert
};

/// One workload on one machine.
struct Run {
    Workload workload;
    std::string reference;  ///< what all were held against: "reference_cpu:fp64"
    std::string product;    ///< "cuBLAS bf16 8192 x 8192 x 8192"
    std::optional<Calibration> before, after;  ///< nothing where nothing was timed
    std::vector<Measurement> measurements;
    /// The whole layer, both passes, one component after another from the next tier.
    std::vector<Measurement> waterfall;
};

/// One stage of `moe gpu-check`.
struct Stage {
    std::string name, status;  ///< "passed", "failed", "skipped", "over budget"
    double seconds = 0.0;
    std::string detail;  ///< one line
};

/// A test of CUDA's rules in which hardware and executor differ.
struct Disagreement {
    std::string test, message;
};

/// A peer's time beside ours, from bench/peers.py.
struct PeerTiming {
    std::string peer, pass, model, routing;
    std::int64_t tokens = 0;
    Timing ms;
    double tflops = 0.0;
};

struct Result {
    std::string created;  ///< UTC, "2026-11-27T22:04:05Z"
    std::string commit;   ///< twelve digits, "-modified" when the tree was
    /// "gpu", "executor" (kernels on a CPU) or "cpu" (only the reference ran)
    std::string kind;
    std::string device;                        ///< "NVIDIA H100 80GB HBM3"
    std::map<std::string, std::string> facts;  ///< driver, clocks, limits, compiler, …
    std::vector<Run> runs;
    std::vector<Stage> stages;
    std::vector<Disagreement> disagreements;
    std::vector<PeerTiming> peers;
};

/// With "tflops" and "gb_per_s" beside every time, for other readers. InputError for what
/// result_from_json() would not take, such as a time of the CPU executor.
nlohmann::ordered_json to_json(const Result& result);

/// InputError "<where> <field> = …" for whatever is missing or of the wrong type, and for
/// another format or version.
/// @param where  the file, for messages
Result result_from_json(const nlohmann::json& json, const std::string& where);

/// The version of a file of results, which may be another than kResultVersion. InputError
/// when it is no such file.
int version_of_result(const nlohmann::json& json, const std::string& where);

/// TFLOP/s and GB/s of a timed measurement.
double tflops(const Measurement& measurement);
double gb_per_s(const Measurement& measurement);

}  // namespace moe::bench
