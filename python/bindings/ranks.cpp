// moe.run_ranks(): ranks as threads, each of which runs a function of Python's.

#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "core/error.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/sharding.h"
#include "python/bindings/arrays.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

using distributed::Communicator;
using Running = std::shared_ptr<std::atomic<bool>>;

/// moe.Rank: the end of the world that one thread holds.
struct Rank {
    Communicator* world;
    Running running;

    Communicator& communicator() const {
        if (!*running)
            reject("rank", "ended", "must be used within the function of run_ranks()");
        return *world;
    }
};

Tensor cpu_copy(const Tensor& tensor) {
    Tensor result = Tensor::empty(tensor.shape(), tensor.dtype());
    copy(result.view(), tensor.view());
    return result;
}

Tensor all_gather(Rank& rank, const Tensor& part) {
    if (part.shape().empty() || part.space() != MemorySpace::host)
        reject("part", to_string(part.shape()), "must have rows, on the host");
    Communicator& world = rank.communicator();
    Shape shape = part.shape();
    const Unlocked unlocked;
    // Rows may differ from rank to rank.
    const Tensor mine = Tensor::from<std::int64_t>({1}, {shape[0]});
    Tensor rows = Tensor::empty({world.size()}, DType::i64);
    world.all_gather(rows, mine);
    const auto* first = rows.data<std::int64_t>();
    const distributed::Splits splits(first, first + world.size());
    shape[0] = 0;
    for (std::int64_t count : splits) shape[0] += count;
    Tensor whole = Tensor::empty(shape, part.dtype());
    world.all_gather(whole, part, splits);
    return whole;
}

Tensor all_reduce(Rank& rank, const Tensor& tensor) {
    Communicator& world = rank.communicator();
    const Unlocked unlocked;
    Tensor sum = cpu_copy(tensor);
    world.all_reduce(sum);
    return sum;
}

/// What the ranks' functions returned or raised.
struct Outcome {
    std::mutex mutex;
    std::vector<nb::object> results;
    std::exception_ptr raised;  // the first in time: the others follow from it
};

void run_rank(Communicator& world, const nb::callable& program, const Running& running,
              Outcome& outcome) {
    const nb::gil_scoped_acquire gil;
    try {
        outcome.results[world.rank()] = program(Rank{&world, running});
    } catch (nb::python_error& error) {
        {
            const std::lock_guard lock(outcome.mutex);
            if (outcome.raised == nullptr) outcome.raised = std::current_exception();
        }
        throw InputError(
            one_line(fmt::format("the function of rank {} raised {}", world.rank(),
                                 nb::cast<std::string>(error.type().attr("__name__")))));
    }
}

nb::list run_ranks(int world_size, const nb::callable& program, double deadline) {
    if (world_size < 1 || world_size > 64)
        reject("world_size", world_size, "must be 1 to 64");
    if (!(deadline > 0) || deadline > 1e6)
        reject("deadline", deadline, "must be a number of seconds, more than 0");
    Outcome outcome;
    outcome.results.resize(world_size);
    const Running running = std::make_shared<std::atomic<bool>>(true);
    std::exception_ptr failed;
    {
        const Unlocked unlocked;
        try {
            distributed::run_ranks(
                world_size,
                [&](Communicator& world) { run_rank(world, program, running, outcome); },
                std::chrono::milliseconds(std::int64_t(deadline * 1000)));
        } catch (...) {
            failed = std::current_exception();
        }
    }
    *running = false;
    if (outcome.raised != nullptr) std::rethrow_exception(outcome.raised);
    if (failed != nullptr) std::rethrow_exception(failed);
    nb::list results;
    for (nb::object& result : outcome.results) results.append(result);
    return results;
}

Groups make_groups(Rank& rank, const Config& config) {
    Communicator& world = rank.communicator();
    const Unlocked unlocked;
    return {distributed::make_process_groups(world, config.config), rank.running};
}

std::map<std::string, std::vector<int>> members(const Groups& self) {
    groups_from(&self);
    const auto& groups = *self.groups;
    std::map<std::string, std::vector<int>> result;
    const auto add = [&](const char* name, const auto& group) {
        if (group != nullptr) result[name] = group->members();
    };
    add("tp", groups.tp);
    add("cp", groups.cp);
    add("dp", groups.dp);
    add("tp_cp", groups.tp_cp);
    add("dp_cp", groups.dp_cp);
    add("tp_dp_cp", groups.tp_dp_cp);
    add("ep", groups.ep);
    add("expt_tp", groups.expt_tp);
    add("tp_ep", groups.tp_ep);
    add("expt_dp", groups.expt_dp);
    return result;
}

nb::dict sent(Rank& rank) {
    nb::dict result;
    for (const auto& [operation, to] : rank.communicator().ledger().sent()) {
        nb::dict bytes;
        for (const auto& [peer, count] : to) bytes[nb::int_(peer)] = count;
        result[operation.c_str()] = bytes;
    }
    return result;
}

void bind_rank(nb::module_& module) {
    nb::class_<Rank>(module, "Rank", "One of the ranks of run_ranks(), for its function.")
        .def_prop_ro("rank", [](const Rank& r) { return r.communicator().rank(); })
        .def_prop_ro("world_size", [](const Rank& r) { return r.communicator().size(); })
        .def(
            "barrier",
            [](Rank& self) {
                Communicator& world = self.communicator();
                const Unlocked unlocked;
                world.barrier();
            },
            "Returns when every rank has called it.")
        .def(
            "all_gather",
            [](Rank& self, nb::handle part) {
                return to_python(all_gather(self, tensor_from(part, "part")));
            },
            nb::arg("part").none(),
            nb::sig("def all_gather(self, part: ArrayLike) -> Tensor"),
            "Everybody's rows, in rank order. All axes but the first must agree.")
        .def(
            "all_reduce",
            [](Rank& self, nb::handle tensor) {
                return to_python(all_reduce(self, tensor_from(tensor, "tensor")));
            },
            nb::arg("tensor").none(),
            nb::sig("def all_reduce(self, tensor: ArrayLike) -> Tensor"),
            "The sum over all ranks, in ascending order of ranks; a new tensor.")
        .def("sent", &sent, nb::sig("def sent(self) -> dict[str, dict[int, int]]"),
             "Bytes this rank has sent since reset_sent(), by operation and world rank.")
        .def("reset_sent", [](Rank& self) { self.communicator().ledger().reset_sent(); })
        .def("process_groups", &make_groups, nb::arg("config"), nb::keep_alive<0, 1>(),
             "This rank's groups, as the config's parallel sizes cut the world. "
             "Collective.");
}

}  // namespace

GroupsPtr groups_from(const Groups* groups) {
    if (groups == nullptr) return nullptr;
    if (!*groups->running)
        reject("groups", "of ranks that have ended",
               "must be used within the function of run_ranks()");
    return groups->groups;
}

void bind_ranks(nb::module_& module) {
    nb::class_<Groups>(module, "ProcessGroups", R"(A rank's groups: who a layer talks to.

Source: Megatron's process_groups_config.py, ProcessGroupCollection.)")
        .def_prop_ro(
            "members", &members, nb::sig("def members(self) -> dict[str, list[int]]"),
            "World ranks of this rank's group, by name: tp, cp, dp, ep, expt_tp, "
            "tp_ep, ….")
        .def(
            "shard_parameters",
            [](const Groups& self, const Config& config, nb::handle parameters) {
                groups_from(&self);
                return to_python(distributed::shard_parameters(
                    config.config, tensors_from(parameters, "parameters"), *self.groups));
            },
            nb::arg("config"), nb::arg("parameters").none(),
            nb::sig("def shard_parameters(self, config: MoEConfig, "
                    "parameters: dict[str, ArrayLike]) -> dict[str, Tensor]"),
            "This rank's shard of the whole layer's parameters.");
    bind_rank(module);
    module.def(
        "run_ranks", &run_ranks, nb::arg("world_size"), nb::arg("program"),
        nb::arg("deadline") = 60.0,
        nb::sig("def run_ranks(world_size: int, "
                "program: collections.abc.Callable[[Rank], object], "
                "deadline: float = 60.0) -> list"),
        R"(Calls ``program(rank)`` once per rank, each in a thread; returns their results.

A rank that raises ends the others, and its exception is raised here. One that stays away
from a collective for longer than `deadline` seconds ends all with a RankError.)");
}

}  // namespace moe::python
