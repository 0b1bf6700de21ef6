/// @file
/// Python's lock, forks, and the end of the interpreter.
#pragma once

#include <nanobind/nanobind.h>

namespace moe::python {

/// While it lives, other threads run Python. The interpreter does not end meanwhile.
///
/// TUTORIAL: a thread that asks for the lock of an interpreter that is ending is killed,
/// before Python 3.14 by an exception that no destructor lets through. So the end waits
/// for those who are without the lock, and whoever would give it up after that gets no
/// further.
class Unlocked {
  public:
    Unlocked();
    ~Unlocked();
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    PyThreadState* state_;
};

/// Makes the interpreter's end wait, for at most ten seconds.
void wait_at_exit(nanobind::module_& module);

/// Tells OpenMP, in a process that was forked, that its threads are not there.
void survive_forks();
/// How many forks lie between this process and the one that took the module in.
int forks_so_far();

}  // namespace moe::python
