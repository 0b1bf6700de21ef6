#include "cli/commands.h"
#include "cli/start.h"

int main(int argc, char** argv) {
    moe::start(argv);
    return moe::run_program({argv + 1, argv + argc});
}
