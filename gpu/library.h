/// @file
/// Libraries that are opened when the program runs, so that a program built elsewhere
/// starts without them: NCCL, cuBLAS, NVML.
#pragma once

#include <string>
#include <vector>

namespace moe::gpu {

/// A shared library, open until the program ends.
class Library {
  public:
    /// The first that opens of `names` ("libcublas.so.13", …), looked for
    ///  1. in the folders of MOE_LIBRARY_PATH (separated by colons),
    ///  2. where the loader looks by itself,
    ///  3. in nvidia/*/lib of python3's packages: NVIDIA's wheels put them there.
    explicit Library(const std::vector<std::string>& names);

    bool found() const { return handle_ != nullptr; }
    /// Path or name that was opened; or why none was, in one line.
    const std::string& where() const { return where_; }

    /// A function of the library; null when it has none of that name.
    template <typename Function>
    Function* function(const char* name) const {
        return reinterpret_cast<Function*>(symbol(name));
    }

  private:
    void* symbol(const char* name) const;

    void* handle_ = nullptr;
    std::string where_;
};

}  // namespace moe::gpu
