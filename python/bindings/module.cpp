// The module moe._moe: exceptions, what a fork and the end of the interpreter ask for,
// and everything that the other files of this folder define.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cli/commands.h"
#include "core/error.h"
#include "core/tier.h"
#include "distributed/communicators/communicator.h"
#include "gpu/tensor.h"
#include "python/bindings/arrays.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

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

Runner::Runner(const ModuleSpec& spec, const Groups* groups)
    : on_gpu_(spec.uses_device() && !gpu::is_emulated()),
      running_(groups != nullptr ? groups->running : nullptr) {
    require_usable();
}

void Runner::require_usable() const {
    if (memory_->forks != forks_so_far()) {
        // Held by a thread that this process does not have, it would stay so.
        if (!memory_->mutex.try_lock())
            reject("layer", "busy when this process was forked",
                   "must be made anew here: a thread of the parent was within it");
        memory_->mutex.unlock();
        memory_->forks = forks_so_far();
    }
    if (on_gpu_ && forks_so_far() > 0)
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
    wait_at_exit(module);
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
    bind_checkpoint(module);
    bind_sizes(module);
    bind_text(module);
    module.def(
        "run_program",
        [](const std::vector<std::string>& arguments) {
            const Unlocked unlocked;
            return moe::run_program(arguments);
        },
        nanobind::arg("arguments"),
        "The program `moe` with these arguments; its exit code.");
}
