// lesson.cpp: the five versions are run and counted.

#include "cli/microscope/lesson.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "cli/files.h"
#include "core/error.h"
#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::microscope {

namespace observe = cuda_on_cpu::observe;

namespace {

/// Whole numbers from -3 to 3, exact in every dtype.
Tensor operand(Version version, std::int64_t rows, std::int64_t columns, int step) {
    std::vector<float> values(std::size_t(rows * columns));
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = float(int(i * std::size_t(step) % 7) - 3);
    return transfer(Tensor::from({rows, columns}, values),
                    {MemorySpace::device, operand_dtype(version)});
}

Tensor run(Version version, const Sizes& sizes) {
    const Tensor x = operand(version, sizes.rows, sizes.in, 5);
    const Tensor weight = operand(version, sizes.out, sizes.in, 3);
    return linear(version, x, weight);
}

/// While it lives, launches are written to a file that does not outlive it; asynchronous
/// instructions do their work at the last moment, so that the timeline shows what may
/// overlap.
class Recording {
  public:
    Recording() : before_(cuda_on_cpu::options()) {
        cuda_on_cpu::options().schedule = {};
        cuda_on_cpu::parse_asynchrony("deferred", cuda_on_cpu::options().asynchrony);
        if (!cuda_on_cpu::trace_to(path_))
            reject("TMPDIR", folder().string(),
                   "must be a folder that can be written to");
    }
    std::string finish() {
        cuda_on_cpu::trace_to("");
        std::string trace = read_file("TMPDIR", path_);
        // Places as anybody has them, wherever the source tree is
        const std::string root = MOE_SOURCE_DIR "/";
        for (std::size_t at; (at = trace.find(root)) != trace.npos;)
            trace.erase(at, root.size());
        return trace;
    }
    ~Recording() {
        cuda_on_cpu::trace_to("");
        std::error_code ignored;
        std::filesystem::remove(path_, ignored);
        cuda_on_cpu::options() = before_;
    }

  private:
    static std::filesystem::path folder() {
        const char* const named = std::getenv("TMPDIR");
        return named != nullptr ? named : "/tmp";
    }

    cuda_on_cpu::Options before_;
    std::string path_ = folder() / fmt::format("moe_timeline_{}.json", getpid());
};

}  // namespace

void require_sizes(const Sizes& sizes) {
    static constexpr std::int64_t kMost = 4096;
    const auto require = [](const char* flag, std::int64_t size, int multiple) {
        if (size < 1 || size > kMost || size % multiple != 0)
            reject(flag, size,
                   multiple == 1 ? fmt::format("must be from 1 to {}", kMost)
                                 : fmt::format("must be a multiple of {}, up to {}",
                                               multiple, kMost));
    };
    require("--rows", sizes.rows, 1);
    require("--out", sizes.out, 4);
    require("--in", sizes.in, 8);
    constexpr std::int64_t kProducts = 1 << 26;
    if (sizes.rows * sizes.out * sizes.in > kProducts)
        reject("--rows x --out x --in",
               fmt::format("{} x {} x {}", sizes.rows, sizes.out, sizes.in),
               fmt::format("must be at most {} products, half a minute", kProducts));
}

bool is_clean(const std::vector<Look>& looks) {
    return std::all_of(looks.begin(), looks.end(), [&](const Look& look) {
        return look.y == looks[0].y && look.report.findings.empty();
    });
}

Look look_at(Version version, const Sizes& sizes, bool races) {
    gpu::register_device_memory();
    Look look{version, {}, {}, ""};
    observe::start({.races = races});
    const Tensor y = run(version, sizes);
    look.y = gpu::to_host<float>(y);
    observe::stop();
    look.report = observe::report();
    if (version == Version::pipelined) {
        Recording recording;
        run(version, sizes);
        gpu::synchronize();
        look.timeline = recording.finish();
    }
    return look;
}

}  // namespace moe::microscope
