// {fmt} asks for -Og where a build has no optimisation, as the one for gdb. One such
// function in a file, and gdb takes the whole file for optimised: a break at a function
// then stops in front of its prologue, where arguments have no values yet
// (findings/fmt_og_gdb.sh).
#pragma once

#ifdef __OPTIMIZE__
#include <fmt/format.h>
#else
// What {fmt} includes must not see what {fmt} shall see.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#define __OPTIMIZE__ 1
#include <fmt/format.h>
#undef __OPTIMIZE__
#endif
