/// @file
/// Launches of kernels with a bug planted in them. Executor only.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "gpu/launch.h"

namespace moe::test {

/// What the launch says; empty when it goes well.
template <typename... Parameters, typename... Arguments>
std::string fault(void (*kernel)(Parameters...), gpu::LaunchConfig config,
                  Arguments... arguments) {
    try {
        gpu::launch("planted", kernel, config, arguments...);
    } catch (const gpu::DeviceError& error) {
        return error.what();
    }
    return "";
}

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << text

}  // namespace moe::test
