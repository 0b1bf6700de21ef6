/// @file
/// What kernels say before they stop. TUTORIAL: a kernel that ends by a trap takes
/// everything on the device with it, what it printed included; memory of the host that it
/// wrote to before is still there.
#pragma once

#include <functional>
#include <list>
#include <string>

namespace moe::gpu {

/// While it lives, every failure of a CUDA call in this process is told together with
/// what `read` returns, unless that is "".
class KernelReport {
  public:
    explicit KernelReport(std::function<std::string()> read);
    ~KernelReport();
    KernelReport(const KernelReport&) = delete;
    KernelReport& operator=(const KernelReport&) = delete;

  private:
    std::list<std::function<std::string()>>::iterator place_;
};

/// All that is reported now, each behind "; ".
std::string kernel_reports();

}  // namespace moe::gpu
