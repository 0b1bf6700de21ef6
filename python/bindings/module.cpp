// The module moe._moe: exceptions, what a fork and the end of the interpreter ask for,
// and everything that the other files of this folder define.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cli/commands.h"
#include "core/error.h"
#include "core/tier.h"
#include "distributed/communicators/communicator.h"
#include "gpu/tensor.h"
#include "python/bindings/arrays.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

std::atomic<bool> forked = false;

// TUTORIAL: fork() copies the memory of all threads, and one thread. OpenMP in the child
// believes in a team that is not there, and the first parallel loop waits for it for
// ever. With one thread it asks nobody; the layer's bits do not depend on their number.
void in_the_child() {
    forked = true;
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
}

void bind_errors(nb::module_& module) {
    nb::exception<InputError>(module, "InputError", PyExc_ValueError);
    nb::exception<distributed::CommunicatorError>(module, "RankError",
                                                  module.attr("InputError"));
    nb::exception<InternalError>(module, "InternalError", PyExc_RuntimeError);
    module.attr("InputError").attr("__doc__") =
        "Bad input: one line, \"<field> = <value>: <what is allowed>\".";
    module.attr("RankError").attr("__doc__") =
        "A collective that did not come about: a rank failed, stayed away or called "
        "another.";
    module.attr("InternalError").attr("__doc__") =
        "A broken promise inside the library: please report it.";
}

}  // namespace

void survive_forks() {
    pthread_atfork(nullptr, nullptr, in_the_child);
}

bool is_forked() {
    return forked;
}

Runner::Runner(const ModuleSpec& spec, const Groups* groups)
    : on_gpu_(spec.uses_device() && !gpu::is_emulated()),
      running_(groups != nullptr ? groups->running : nullptr) {
    require_usable();
}

void Runner::require_usable() const {
    if (on_gpu_ && is_forked())
        reject("process", "forked",
               "a GPU is its parent's: start processes that use one with \"spawn\"");
    if (running_ != nullptr && !*running_)
        reject("groups", "of ranks that have ended",
               "must be used within the function of run_ranks()");
}

}  // namespace moe::python

NB_MODULE(_moe, module) {
    using namespace moe::python;
    module.doc() = "The compiled part of the package moe.";
    if (moe::tiers().empty()) moe::register_all_tiers();
    survive_forks();
    // An object that still lives when the interpreter ends is nobody's mistake.
    nanobind::set_leak_warnings(false);
    bind_errors(module);
    bind_arrays(module);
    bind_config(module);
    bind_suppliers(module);
    bind_ranks(module);
    bind_layer(module);
    bind_trace(module);
    bind_router(module);
    bind_experts(module);
    bind_dispatcher(module);
    bind_permutation(module);
    module.def(
        "run_program",
        [](const std::vector<std::string>& arguments) {
            const nanobind::gil_scoped_release released;
            return moe::run_program(arguments);
        },
        nanobind::arg("arguments"),
        "The program `moe` with these arguments; its exit code.");
}
