/// @file
/// Looking at one launch: its counters, and those of the lines that a test names.
#pragma once

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <string>

#include "cuda_on_cpu/observe.h"
#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {

using cuda_on_cpu::observe::Counters;
using cuda_on_cpu::observe::Finding;
using cuda_on_cpu::observe::Report;

/// The line of `file` that ends in the comment "// <mark>". A failure when there is not
/// just one.
int marked_line(const std::string& file, const std::string& mark);

/// What one launch did.
struct Seen {
    Report report;
    std::string file;  ///< of the kernel

    const Counters& total() const { return report.launches.back().counters; }
    /// Of the line that ends in the comment "// <mark>".
    Counters at(const std::string& mark) const;
};

/// "race of 12 and 15; unwritten at 7": what was found and where, in alphabetical order.
std::string findings_of(const Report& report);

/// What findings_of() says of a race of two lines of `file`, by their marks.
std::string race_in(const std::string& file, const std::string& one,
                    const std::string& other);

/// Runs `work` with the search for races; what it found, see findings_of().
template <typename Work>
std::string races_of(Work work) {
    cuda_on_cpu::observe::start({.races = true});
    work();
    cuda_on_cpu::observe::stop();
    return findings_of(cuda_on_cpu::observe::report());
}

template <typename Kernel, typename... Arguments>
Seen observe_launch(const char* file, Kernel kernel, const gpu::LaunchConfig& config,
                    Arguments... arguments) {
    cuda_on_cpu::observe::start();
    gpu::launch("kernel", kernel, config, arguments...);
    Seen seen{cuda_on_cpu::observe::report(), file};
    cuda_on_cpu::observe::stop();
    return seen;
}
#define OBSERVE(...) observe_launch(__FILE__, __VA_ARGS__)

}  // namespace moe::test
