/// @file
/// What tables and pictures of results say alike: numbers, specs and workloads in words.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/result.h"

namespace moe::bench {

/// "12.3", "0.0123", "1230": three significant digits, never an exponent.
std::string three_digits(double number);

/// "0.123 ms".
std::string milliseconds(double ms);

/// "62 %", and "0.4 %" below ten.
std::string share(double part);

/// "2.31 times faster", "1.20 times slower", or "as fast as before".
std::string times_faster(double factor);

/// "naive_gpu:bf16" stays; of a mix the most frequent supplier and who differs:
/// "naive_gpu:bf16, router fp32".
std::string spec_in_words(const std::string& spec);

/// What a spec replaces in another: "experts, router → optimized_gpu:bf16".
std::string what_changed(const std::string& from, const std::string& to);

/// "qwen3_30b_a3b, 4,096 tokens, balanced".
std::string workload_in_words(const Workload& workload);

/// "qwen3_30b_a3b-4096-balanced": part of a file's name.
std::string workload_slug(const Workload& workload);

/// Lower-case letters, digits and single dashes: "NVIDIA H100 80GB HBM3" becomes
/// "nvidia-h100-80gb-hbm3".
std::string slug(const std::string& text);

/// The ceilings of a run: the better of the calibration before it and the one after it.
std::optional<Calibration> ceilings(const Run& run);

/// Indices of measurements by subject and pass, both in the order of the layer's steps;
/// suppliers in the order of the file. Groups that are empty are left out.
using Group = std::vector<const Measurement*>;
std::vector<Group> by_subject_and_pass(const std::vector<Measurement>& measurements);

/// The suppliers of a run in the order in which they first appear.
std::vector<std::string> suppliers(const Run& run);

/// A median beside others, drawn with eighths of a character cell:
/// "  naive_gpu:bf16     1.23 ms  ███████▍". What was only counted has no bar.
std::string bar_chart(const Run& run);

}  // namespace moe::bench
