#include "cli/gpu_check/tools.h"

#include <cuda_runtime.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <vector>

#include "cli/gpu_check/child.h"
#include "gpu/tensor.h"

namespace moe::gpu_check {
namespace {

namespace fs = std::filesystem;

// The build for GPUs starts with 8.0 (see cmake/cuda.cmake).
constexpr int kLeastCapability = 8;
constexpr double kLeastMemoryGiB = 8.0;  // layers of real models, in bf16

/// PATH, then CUDA's folders, then the newest of each of NVIDIA's other products.
std::vector<fs::path> folders() {
    std::vector<fs::path> result;
    if (const char* path = std::getenv("PATH")) {
        std::istringstream entries(path);
        for (std::string entry; std::getline(entries, entry, ':');)
            if (!entry.empty()) result.push_back(entry);
    }
    for (const char* folder : {"/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer",
                               "/usr/local/bin", "/usr/bin", "/opt/conda/bin"})
        result.push_back(folder);
    std::vector<fs::path> products;
    std::error_code ignored;
    for (const auto& product : fs::directory_iterator("/opt/nvidia", ignored)) {
        products.push_back(product.path());
        for (const auto& version : fs::directory_iterator(product.path(), ignored))
            products.push_back(version.path());
    }
    std::sort(products.rbegin(), products.rend());
    result.insert(result.end(), products.begin(), products.end());
    return result;
}

bool is_program(const fs::path& path) {
    std::error_code ignored;
    return fs::is_regular_file(path, ignored) && access(path.c_str(), X_OK) == 0;
}

}  // namespace

std::string find_tool(const std::string& name) {
    for (const fs::path& folder : folders())
        if (is_program(folder / name)) return folder / name;
    return "";
}

std::string find_python_with_torch() {
    // Finding the package takes no time; importing it may take ten seconds.
    constexpr const char* kQuestion =
        "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)";
    for (const fs::path& folder : folders()) {
        const fs::path python = folder / "python3";
        if (!is_program(python)) continue;
        const Program program{.arguments = {python, "-c", kQuestion}};
        if (run_child(program, 5.0, [](double) {}).ok()) return python;
        if (interrupted()) break;
    }
    return "";
}

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    return count;
}

std::string unfit_device() {
    if (const std::string missing = gpu::missing_device(); !missing.empty())
        return "gpu = none: " + missing;
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    if (major < kLeastCapability)
        return fmt::format("compute capability = {}.{}: needs {}.0 or newer", major,
                           minor, kLeastCapability);
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess)
        return "gpu = 0: does not tell its properties";
    const double gib = double(properties.totalGlobalMem) / (1 << 30);
    if (gib < kLeastMemoryGiB)
        return fmt::format("GPU memory = {:.1f} GiB: needs {:.0f} GiB", gib,
                           kLeastMemoryGiB);
    return "";
}

}  // namespace moe::gpu_check
