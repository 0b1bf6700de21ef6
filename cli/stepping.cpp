// stepping.cpp: the program that ./moe gdb runs. It has the commands that run the layer
// and show values; what measures would measure a build without optimisation.

#include "cli/commands.h"
#include "cli/start.h"

int main(int argc, char** argv) {
    moe::start(argv);
    return moe::run_program({moe::add_compare, moe::add_verify, moe::add_trace}, {},
                            {argv + 1, argv + argc});
}
