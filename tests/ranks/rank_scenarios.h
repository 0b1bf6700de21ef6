/// @file
/// What a Communicator must do, as programs of one rank: the same ones run over threads,
/// over MPI and over NCCL. They throw where something is not as it should be, so they
/// need no test library in the processes of a run.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "distributed/communicators/communicator.h"

namespace moe::test {

/// A program that must end well on every rank of every back-end, for any number of ranks.
struct Scenario {
    std::string name;
    std::function<void(distributed::Communicator& world, MemorySpace space)> run;
    bool fixed_order = false;  ///< asks for sums in ascending rank order; not for NCCL
};
const std::vector<Scenario>& conformance_scenarios();

/// A program that must end in an error on every rank but perhaps the culprit. Needs
/// three ranks.
struct FailureScenario {
    std::string name;
    std::function<void(distributed::Communicator& world)> run;
    std::vector<std::string> fragments;  ///< of the one line that the others get
    int culprit = -1;                    ///< whose own line is not judged; -1: nobody's
};
const std::vector<FailureScenario>& failure_scenarios();

/// The scenario of that name. InputError for another.
template <typename S>
const S& find_by_name(const std::vector<S>& scenarios, const std::string& name) {
    for (const S& scenario : scenarios)
        if (scenario.name == name) return scenario;
    reject("scenario", name, "is not known");
}

const Scenario& find_scenario(const std::string& name);
const FailureScenario& find_failure(const std::string& name);

}  // namespace moe::test
