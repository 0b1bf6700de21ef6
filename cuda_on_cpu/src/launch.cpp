// launch.cpp: check a launch, then run its blocks on all CPU threads.

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "cluster.h"
#include "error.h"
#include "fault.h"
#include "guarded.h"
#include "stream.h"
#include "trace.h"

namespace cuda_on_cpu {
namespace {

thread_local std::string next_name;

std::mutex attributes_mutex;
std::map<const void*, std::size_t> smem_limits;  // of kernels that asked for more
std::set<const void*> large_clusters;            // kernels that asked for up to 16 blocks

std::size_t smem_limit(const void* kernel) {
    const std::lock_guard lock(attributes_mutex);
    const auto found = smem_limits.find(kernel);
    return found == smem_limits.end() ? 48 * 1024 : found->second;
}

/// An environment variable that must be a positive number.
int positive_from_environment(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    if (text == nullptr) return otherwise;
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > 1024) {
        std::fprintf(stderr, "cuda_on_cpu: %s = %s: must be from 1 to 1024\n", name,
                     text);
        std::exit(2);
    }
    return int(value);
}

Options options_from_environment() {
    Options result;
    result.threads = positive_from_environment(
        "CUDA_ON_CPU_THREADS", std::max(1, int(std::thread::hardware_concurrency())));
    result.multiprocessors = positive_from_environment("CUDA_ON_CPU_SMS", 4);
    const char* text = std::getenv("CUDA_ON_CPU_SCHEDULE");
    if (text != nullptr && !parse_schedule(text, result.schedule)) {
        std::fprintf(stderr,
                     "cuda_on_cpu: CUDA_ON_CPU_SCHEDULE = %s: must be forward, reverse, "
                     "random:SEED or priority:SEED\n",
                     text);
        std::exit(2);
    }
    text = std::getenv("CUDA_ON_CPU_ASYNC");
    if (text != nullptr && !parse_asynchrony(text, result.asynchrony)) {
        std::fprintf(stderr,
                     "cuda_on_cpu: CUDA_ON_CPU_ASYNC = %s: must be eager, deferred or "
                     "deferred:SEED\n",
                     text);
        std::exit(2);
    }
    text = std::getenv("CUDA_ON_CPU_STREAMS");
    if (text != nullptr && !parse_streams(text, result.streams)) {
        std::fprintf(stderr,
                     "cuda_on_cpu: CUDA_ON_CPU_STREAMS = %s: must be eager or held\n",
                     text);
        std::exit(2);
    }
    text = std::getenv("CUDA_ON_CPU_TRACE");
    if (text != nullptr && !trace_to(text)) {
        std::fprintf(stderr,
                     "cuda_on_cpu: CUDA_ON_CPU_TRACE = %s: must be a file that can be "
                     "written\n",
                     text);
        std::exit(2);
    }
    return result;
}

/// CPU threads that wait for blocks to run.
class Workers {
  public:
    static Workers& shared() { return *instance(); }
    ~Workers() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        work_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    /// Runs `job` on `count` workers and here, at once. Only here when the workers are
    /// busy for somebody else.
    void run(int count, const std::function<void()>& job) {
        std::unique_lock busy(busy_, std::try_to_lock);
        if (!busy.owns_lock()) return job();
        {
            const std::lock_guard lock(mutex_);
            while (int(threads_.size()) < count)
                threads_.emplace_back(
                    [this, index = int(threads_.size())] { wait_for_work(index); });
            job_ = &job;
            wanted_ = pending_ = count;
            ++generation_;
        }
        work_.notify_all();
        job();
        std::unique_lock lock(mutex_);
        done_.wait(lock, [&] { return pending_ == 0; });
    }

  private:
    // TUTORIAL: fork() copies memory but no thread. The child's workers are threads that
    // it does not have: it forgets them, and starts its own when it launches something.
    static std::unique_ptr<Workers>& instance() {
        static std::unique_ptr<Workers> workers = [] {
            pthread_atfork(nullptr, nullptr, [] {
                (void)instance().release();
                instance() = std::make_unique<Workers>();
            });
            return std::make_unique<Workers>();
        }();
        return workers;
    }
    void wait_for_work(int index) {
        std::uint64_t seen = 0;
        std::unique_lock lock(mutex_);
        for (;;) {
            work_.wait(lock, [&] {
                return stopping_ || (generation_ != seen && index < wanted_);
            });
            if (stopping_) return;
            seen = generation_;
            lock.unlock();
            (*job_)();
            lock.lock();
            if (--pending_ == 0) done_.notify_all();
        }
    }

    std::mutex mutex_, busy_;
    std::condition_variable work_, done_;
    std::vector<std::thread> threads_;
    const std::function<void()>* job_ = nullptr;
    int wanted_ = 0, pending_ = 0;
    std::uint64_t generation_ = 0;
    bool stopping_ = false;
};

cudaError_t refuse(cudaError_t error, const LaunchRequest& launch,
                   const std::string& why) {
    return set_error(error, "kernel " + launch.name + ": " + why);
}

cudaError_t check_limits(const LaunchRequest& launch) {
    struct Limit {
        const char* field;
        unsigned value, most;
    };
    for (const Limit& limit : {Limit{"gridDim.x", launch.grid.x, 2147483647u},
                               {"gridDim.y", launch.grid.y, 65535u},
                               {"gridDim.z", launch.grid.z, 65535u},
                               {"blockDim.x", launch.block.x, 1024u},
                               {"blockDim.y", launch.block.y, 1024u},
                               {"blockDim.z", launch.block.z, 64u}})
        if (limit.value < 1 || limit.value > limit.most)
            return refuse(cudaErrorInvalidConfiguration, launch,
                          std::string(limit.field) + " = " + std::to_string(limit.value) +
                              ": must be from 1 to " + std::to_string(limit.most));
    const std::uint64_t threads =
        std::uint64_t(launch.block.x) * launch.block.y * launch.block.z;
    if (threads > kMaxThreads)
        return refuse(
            cudaErrorInvalidConfiguration, launch,
            "threads per block = " + std::to_string(threads) + ": must be at most 1024");
    const std::size_t most = smem_limit(launch.call.kernel);
    if (launch.smem > most)
        return refuse(
            cudaErrorInvalidValue, launch,
            "shared memory = " + std::to_string(launch.smem) +
                " bytes: must be at most " + std::to_string(most) +
                (most < kMaxSharedMemory ? ", or what cudaFuncSetAttribute allowed before"
                                         : ""));
    return cudaSuccess;
}

/// A cluster's shape must divide the grid's.
cudaError_t check_cluster(const LaunchRequest& launch) {
    const dim3 &cluster = launch.cluster, &grid = launch.grid;
    struct Axis {
        const char* field;
        unsigned value, blocks;
    };
    for (const Axis& axis : {Axis{"clusterDim.x", cluster.x, grid.x},
                             {"clusterDim.y", cluster.y, grid.y},
                             {"clusterDim.z", cluster.z, grid.z}})
        if (axis.value < 1 || axis.blocks % axis.value != 0)
            return refuse(cudaErrorInvalidConfiguration, launch,
                          std::string(axis.field) + " = " + std::to_string(axis.value) +
                              ": must divide the grid's " + std::to_string(axis.blocks) +
                              " blocks");
    const std::uint64_t blocks = std::uint64_t(cluster.x) * cluster.y * cluster.z;
    const std::lock_guard lock(attributes_mutex);
    const bool large = large_clusters.contains(launch.call.kernel);
    if (blocks > (large ? kMaxCluster : 8))
        return refuse(cudaErrorInvalidConfiguration, launch,
                      "blocks per cluster = " + std::to_string(blocks) +
                          ": must be at most " +
                          (large ? "16"
                                 : "8, or 16 after "
                                   "cudaFuncAttributeNonPortableClusterSizeAllowed"));
    return cudaSuccess;
}

cudaError_t take_attributes(LaunchRequest& launch, const cudaLaunchConfig_t& config) {
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const cudaLaunchAttributeValue& value = config.attrs[i].val;
        switch (config.attrs[i].id) {
            case cudaLaunchAttributeIgnore:
            case cudaLaunchAttributePriority:
            case cudaLaunchAttributeProgrammaticStreamSerialization:
                break;  // kernels of a stream run one after another here: allowed
            case cudaLaunchAttributeClusterDimension:
                launch.cluster = {value.clusterDim.x, value.clusterDim.y,
                                  value.clusterDim.z};
                if (const cudaError_t error = check_cluster(launch)) return error;
                break;
            default:
                return refuse(
                    cudaErrorNotSupported, launch,
                    "launch attribute = " + std::to_string(int(config.attrs[i].id)) +
                        ": the executor has no cooperative launches yet");
        }
    }
    return cudaSuccess;
}

std::atomic<std::uint64_t> total_atomics{0};

/// Clusters one after another, until there are no more or one failed.
void run_clusters(Launch& launch, std::int64_t count) {
    const FaultGuard guard;
    Cluster& cluster = Cluster::mine();
    while (!launch.failed) {
        const std::int64_t index = launch.next_cluster++;
        if (index >= count) break;
        cluster.run(launch, block_at(launch.schedule, index, count));
    }
    total_atomics += std::exchange(atomics_here, 0);
}

/// A launch that was accepted, to its end.
cudaError_t run(Launch& launch, observe::Ticket place) {
    const dim3 &grid = launch.grid, &cluster = launch.cluster;
    const std::int64_t count = std::int64_t(grid.x) * grid.y * grid.z /
                               (std::int64_t(cluster.x) * cluster.y * cluster.z);
    // Watched or traced blocks run one after another: then a run's figures are always the
    // same.
    const int threads = observe::kObserved || trace::is_on() ? 1 : options().threads;
    const auto others = int(std::min<std::int64_t>(threads, count)) - 1;
    observe::launch_begins(launch, place);
    if (others > 0)
        Workers::shared().run(others, [&] { run_clusters(launch, count); });
    else
        run_clusters(launch, count);
    observe::launch_ends();
    if (trace::is_on()) trace::launch_ends();
    const std::string damage =
        repair_canaries(launch.call.arguments, launch.call.argument_bytes);
    if (launch.failed)
        return set_error(launch.error,
                         launch.report + (damage.empty() ? "" : "; and " + damage));
    if (!damage.empty()) return refuse(cudaErrorIllegalAddress, launch, damage);
    return cudaSuccess;
}

}  // namespace

bool parse_streams(const std::string& text, Streams& streams) {
    if (text != "eager" && text != "held") return false;
    streams = text == "held" ? Streams::held : Streams::eager;
    return true;
}

Options& options() {
    static Options chosen = options_from_environment();
    return chosen;
}

void name_next_launch(const char* name) {
    next_name = name;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const KernelCall& call) {
    LaunchRequest launch;
    launch.call = call;
    launch.grid = config.gridDim;
    launch.block = config.blockDim;
    launch.smem = config.dynamicSmemBytes;
    launch.schedule = options().schedule;
    launch.asynchrony = options().asynchrony;
    launch.name = next_name.empty() ? symbol_name(call.kernel) : next_name;
    next_name.clear();
    if (Block::running() != nullptr)
        return refuse(cudaErrorNotSupported, launch,
                      "kernels cannot launch kernels on the executor");
    if (const cudaError_t error = check_limits(launch)) return error;
    if (const cudaError_t error = take_attributes(launch, config)) return error;

    return submit("cudaLaunchKernelEx", config.stream,
                  [request = std::move(launch)](observe::Ticket place) {
                      Launch accepted(request);
                      return run(accepted, place);
                  });
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute,
                                   int value) {
    if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
        const std::lock_guard lock(attributes_mutex);
        if (value != 0)
            large_clusters.insert(kernel);
        else
            large_clusters.erase(kernel);
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || std::size_t(value) > kMaxSharedMemory)
        return set_error(
            cudaErrorInvalidValue,
            "cudaFuncAttributeMaxDynamicSharedMemorySize = " + std::to_string(value) +
                ": must be from 0 to " + std::to_string(kMaxSharedMemory));
    const std::lock_guard lock(attributes_mutex);
    smem_limits[kernel] = std::size_t(value);
    return cudaSuccess;
}

cudaError_t get_function_attributes(cudaFuncAttributes* attributes, const void* kernel) {
    *attributes = {};
    attributes->maxThreadsPerBlock = kMaxThreads;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    attributes->maxDynamicSharedSizeBytes = int(smem_limit(kernel));
    return cudaSuccess;
}

std::uint64_t switch_count() {
    return total_switches;
}
std::uint64_t atomic_count() {
    return total_atomics;
}

// ------------------------------------------------------- what the headers call in
// kernels
std::uint64_t warp_op(WarpOp op, unsigned mask, std::uint64_t value, int argument,
                      int width, Site site) {
    return Block::running()->warp_operation({op, mask, value, argument, width}, site);
}

void* shared_arena(std::size_t bytes, Site site) {
    return Block::running()->shared_arena(bytes, site);
}

void yield_thread() {
    if (Block* block = Block::running()) block->yield();
}

std::uint64_t nanoseconds() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::uint64_t(std::chrono::nanoseconds(now).count());
}

void trap(const char* what, Site site) {
    Block::running()->note_fault(cudaErrorLaunchFailure, what, site);
    Block::running()->abandon();
}

}  // namespace cuda_on_cpu
