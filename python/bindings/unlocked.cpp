#include "python/bindings/unlocked.h"

#include <pthread.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <atomic>
#include <chrono>
#include <thread>

namespace moe::python {
namespace {

namespace nb = nanobind;

// Read and written with Python's lock held.
int unlocked_threads = 0;
bool ending = false;
std::thread::id ending_thread;

std::atomic<int> forks = 0;

// TUTORIAL: fork() copies the memory of all threads, and one thread. OpenMP in the child
// believes in a team that is not there, and the first parallel loop waits for it for
// ever. With one thread it asks nobody; the layer's bits do not depend on their number.
void in_the_child() {
    ++forks;
    unlocked_threads = 0;
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
}

void wait_for_others() {
    ending = true;
    ending_thread = std::this_thread::get_id();
    for (int look = 0; unlocked_threads > 0 && look < 10000; ++look) {
        const nb::gil_scoped_release released;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
}

}  // namespace

Unlocked::Unlocked() {
    const bool too_late = ending && std::this_thread::get_id() != ending_thread;
    if (!too_late) ++unlocked_threads;
    state_ = PyEval_SaveThread();
    while (too_late) pause();  // the process ends around it
}

Unlocked::~Unlocked() {
    PyEval_RestoreThread(state_);
    --unlocked_threads;
}

void wait_at_exit(nb::module_& module) {
    module.def("_wait_for_others", &wait_for_others);
    nb::module_::import_("atexit").attr("register")(module.attr("_wait_for_others"));
}

void survive_forks() {
    pthread_atfork(nullptr, nullptr, in_the_child);
}

int forks_so_far() {
    return forks;
}

}  // namespace moe::python
