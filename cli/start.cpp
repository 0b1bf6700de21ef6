#include "cli/start.h"

#include <stdlib.h>
#include <unistd.h>

#include <climits>

#include "cli/commands.h"
#include "core/transfer.h"

namespace moe {
namespace {

/// OpenMP's threads shall sleep while they wait: spinning, they take the cores that
/// others need, and with one busy neighbour everything takes several times as long.
/// libgomp reads how to wait before main(), so the program starts itself once more.
void let_waiting_threads_sleep(char** argv) {
    constexpr const char* kPolicy = "OMP_WAIT_POLICY";
    char self[PATH_MAX] = "";
    if (getenv(kPolicy) != nullptr || readlink("/proc/self/exe", self, PATH_MAX - 1) < 0)
        return;
    setenv(kPolicy, "passive", 1);
    execv(self, argv);  // returns where that is not allowed; then it goes on as it is
}

}  // namespace

void start(char** argv) {
    let_waiting_threads_sleep(argv);
    keep_freed_memory();
    register_all_tiers();
}

}  // namespace moe
