// The functions of {fmt}, compiled once for programs that carry them (MOE_PORTABLE): in
// every file, as fmt::fmt-header-only has them, they cost nvcc eight seconds each.
#define FMT_HEADER_ONLY
#include <fmt/format.h>
