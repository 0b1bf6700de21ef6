/// @file
/// The fields of a result, named once for writing and for reading, and what each may
/// hold. `fields` is the Writer or the Reader of result.cpp: it takes a name and a value,
/// `require`s what must hold, and knows what is `derived` from the rest.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

#include "bench/result.h"

namespace moe::bench {

inline bool among(const std::string& word, std::initializer_list<const char*> words) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

/// "2026-11-27T22:04:05Z".
inline bool is_moment(const std::string& text) {
    const std::string pattern = "dddd-dd-ddTdd:dd:ddZ";
    return text.size() == pattern.size() &&
           std::equal(text.begin(), text.end(), pattern.begin(), [](char c, char p) {
               return p == 'd' ? c >= '0' && c <= '9' : c == p;
           });
}

/// A commit becomes part of a file's name.
inline bool is_commit(const std::string& text) {
    return !text.empty() && text.size() <= 64 &&
           std::all_of(text.begin(), text.end(), [](char c) {
               return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '-';
           });
}

inline void each_field(auto& fields, Timing& timing) {
    fields("median", timing.median);
    fields("p10", timing.p10);
    fields("p90", timing.p90);
    fields("count", timing.count);
    fields.require(timing.median > 0.0, "median", timing.median, "must be above 0");
    fields.require(timing.p10 <= timing.median, "p10", timing.p10,
                   "must be at most the median");
    fields.require(timing.p90 >= timing.median, "p90", timing.p90,
                   "must be at least the median");
    fields.require(timing.count >= 1, "count", timing.count, "must be at least 1");
}

inline void each_field(auto& fields, Calibration& calibration) {
    fields("copy_gb_per_s", calibration.copy_gb_per_s);
    fields("product_tflops", calibration.product_tflops);
    fields.require(calibration.copy_gb_per_s > 0.0, "copy_gb_per_s",
                   calibration.copy_gb_per_s, "must be above 0");
    fields.require(calibration.product_tflops.value_or(1.0) > 0.0, "product_tflops",
                   calibration.product_tflops.value_or(1.0), "must be above 0, or null");
}

inline void each_field(auto& fields, Measurement& measurement) {
    fields("subject", measurement.subject);
    fields("pass", measurement.pass);
    fields("spec", measurement.spec);
    fields("emulated", measurement.emulated);
    fields("ms", measurement.ms);
    fields("flops", measurement.flops);
    fields("bytes", measurement.bytes);
    fields("floor_ms", measurement.floor_ms);
    fields("launches", measurement.launches);
    fields("host_waits", measurement.host_waits);
    fields("peak_device_bytes", measurement.peak_device_bytes);
    fields("kept_bytes", measurement.kept_bytes);
    fields("kept_bytes_by_formula", measurement.kept_bytes_by_formula);
    fields("kept_formula", measurement.kept_formula);
    fields.or_infinite("error", measurement.error);
    fields("bound", measurement.bound);
    const auto derived = [&](double (*rate)(const Measurement&)) {
        return measurement.ms ? std::optional(rate(measurement)) : std::nullopt;
    };
    fields.derived("tflops", derived(tflops));
    fields.derived("gb_per_s", derived(gb_per_s));
    fields.require(among(measurement.subject,
                         {"router", "dispatcher", "experts", "shared_experts", "layer"}),
                   "subject", measurement.subject,
                   "allowed are router, dispatcher, experts, shared_experts, layer");
    fields.require(among(measurement.pass, {"forward", "backward", "both"}), "pass",
                   measurement.pass, "allowed are forward, backward, both");
    fields.require(!(measurement.emulated && measurement.ms), "ms", "a time",
                   "must be null: the CPU executor counts, and is never timed");
    fields.require(!measurement.ms || measurement.error <= measurement.bound, "error",
                   measurement.error,
                   "must be within the bound: wrong values have no time");
}

inline void each_field(auto& fields, Workload& workload) {
    fields("model", workload.model);
    fields("routing", workload.routing);
    fields("tokens", workload.tokens);
    fields("H", workload.H);
    fields("E", workload.E);
    fields("K", workload.K);
    fields("F", workload.F);
    fields("Fs", workload.Fs);
    fields("rows", workload.rows);
    fields("min_rows", workload.min_rows);
    fields("median_rows", workload.median_rows);
    fields("max_rows", workload.max_rows);
}

inline void each_field(auto& fields, Run& run) {
    fields("workload", run.workload);
    fields("reference", run.reference);
    fields("product", run.product);
    fields("before", run.before);
    fields("after", run.after);
    fields("measurements", run.measurements);
    fields("waterfall", run.waterfall);
}

inline void each_field(auto& fields, Stage& stage) {
    fields("name", stage.name);
    fields("status", stage.status);
    fields("seconds", stage.seconds);
    fields("detail", stage.detail);
    fields.require(among(stage.status, {"passed", "failed", "skipped", "over budget"}),
                   "status", stage.status,
                   "allowed are passed, failed, skipped, over budget");
}

inline void each_field(auto& fields, Disagreement& disagreement) {
    fields("test", disagreement.test);
    fields("message", disagreement.message);
}

inline void each_field(auto& fields, PeerTiming& peer) {
    fields("peer", peer.peer);
    fields("pass", peer.pass);
    fields("model", peer.model);
    fields("routing", peer.routing);
    fields("tokens", peer.tokens);
    fields("ms", peer.ms);
    fields("tflops", peer.tflops);
    fields.require(among(peer.pass, {"forward", "backward", "both"}), "pass", peer.pass,
                   "allowed are forward, backward, both");
}

inline void each_field(auto& fields, Result& result) {
    fields("created", result.created);
    fields("commit", result.commit);
    fields("kind", result.kind);
    fields("device", result.device);
    fields("facts", result.facts);
    fields("runs", result.runs);
    fields("stages", result.stages);
    fields("disagreements", result.disagreements);
    fields("peers", result.peers);
    fields.require(is_moment(result.created), "created", result.created,
                   "must be UTC, such as 2026-11-27T22:04:05Z");
    fields.require(is_commit(result.commit), "commit", result.commit,
                   "must be 1 to 64 of 0-9, a-z and -");
    fields.require(among(result.kind, {"gpu", "executor", "cpu"}), "kind", result.kind,
                   "allowed are gpu, executor, cpu");
    fields.require(!result.device.empty(), "device", result.device, "must be named");
}

}  // namespace moe::bench
