/// @file
/// What Python holds of the layer's parts, and where each file of this folder defines its
/// classes.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "core/buffer_pool.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/steps.h"
#include "core/tier.h"
#include "distributed/process_groups.h"
#include "python/bindings/unlocked.h"

namespace moe::python {

namespace nb = nanobind;

/// moe.MoEConfig: as it was given, and finalized.
struct Config {
    MoEConfig given, config;
    explicit Config(const MoEConfig& given) : given(given), config(given) {
        config.finalize();
    }
};

/// moe.ProcessGroups: a rank's groups, as long as the ranks run.
struct Groups {
    distributed::ProcessGroupsPtr groups;
    std::shared_ptr<std::atomic<bool>> running;
};
/// The groups of the argument, null for None. InputError once the ranks have ended.
GroupsPtr groups_from(const Groups* groups);

/// What every object with components needs to run them: one call at a time, in memory
/// that calls give on to each other, with Python's lock released.
class Runner {
  public:
    explicit Runner(const ModuleSpec& spec, const Groups* groups);
    /// In the memory of another, and in turn with it.
    Runner(const Runner&) = default;

    /// What `action` returns. InputError where this process or its ranks cannot run it.
    template <typename Action>
    auto run(const Action& action) {
        require_usable();
        const Unlocked unlocked;
        const std::lock_guard lock(memory_->mutex);
        const BufferPool::Scope scope(memory_->pool);
        return action();
    }

  private:
    void require_usable() const;

    struct Memory {
        std::mutex mutex;
        BufferPool pool;
        int forks = forks_so_far();  // until it was last used
    };
    std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
    bool on_gpu_;
    std::shared_ptr<std::atomic<bool>> running_;  // null: without ranks
};

/// A ModuleSpec, or a text that names one.
ModuleSpec spec_from(nb::handle spec);

/// Losses as a dict.
nb::dict to_python(const std::map<std::string, double>& losses);

void bind_config(nb::module_& module);
void bind_suppliers(nb::module_& module);
void bind_layer(nb::module_& module);
void bind_trace(nb::module_& module);
void bind_router(nb::module_& module);
void bind_experts(nb::module_& module);
void bind_dispatcher(nb::module_& module);
void bind_checkpoint(nb::module_& module);
void bind_permutation(nb::module_& module);
void bind_ranks(nb::module_& module);
void bind_sizes(nb::module_& module);
void bind_text(nb::module_& module);

}  // namespace moe::python
