#include "gpu/kernel_reports.h"

#include <mutex>

namespace moe::gpu {
namespace {

struct Reports {
    std::mutex mutex;
    std::list<std::function<std::string()>> all;
};

Reports& reports() {
    static Reports reports;
    return reports;
}

}  // namespace

KernelReport::KernelReport(std::function<std::string()> read) {
    const std::lock_guard lock(reports().mutex);
    place_ = reports().all.insert(reports().all.end(), std::move(read));
}

KernelReport::~KernelReport() {
    const std::lock_guard lock(reports().mutex);
    reports().all.erase(place_);
}

std::string kernel_reports() {
    const std::lock_guard lock(reports().mutex);
    std::string text;
    for (const auto& read : reports().all)
        if (const std::string report = read(); !report.empty()) text += "; " + report;
    return text;
}

}  // namespace moe::gpu
