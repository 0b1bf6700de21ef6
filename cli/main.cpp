#include "cli/commands.h"
#include "core/transfer.h"

int main(int argc, char** argv) {
    moe::keep_freed_memory();
    moe::register_all_tiers();
    return moe::run_program({argv + 1, argv + argc});
}
