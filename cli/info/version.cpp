#include "cli/info/version.h"

#include "commit.h"  // cmake/commit.cmake writes it at every build

namespace moe {

std::string commit() {
    return MOE_COMMIT;
}

}  // namespace moe
