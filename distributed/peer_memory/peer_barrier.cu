// peer_barrier.cu: ranks that wait for each other on their devices.

#include "distributed/peer_memory/peer_barrier.h"

#include "distributed/communicators/agreement.h"
#include "gpu/kernel_reports.h"
#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor.h"

namespace moe::distributed {
namespace {

/// What is sent, by step and rank of the group, since it was last read.
using Booked = unsigned long long;
constexpr int kBookedSteps = 4;

/// The steps in which a dispatcher meets, and how their traffic is called.
int index_of(Step step) {
    switch (step) {
        case Step::dispatch: return 0;
        case Step::combine: return 1;
        case Step::combine_backward: return 2;
        default: MOE_CHECK(step == Step::dispatch_backward); return 3;
    }
}
constexpr const char* kTrafficNames[kBookedSteps] = {
    "flex_dispatch", "flex_combine", "flex_combine_backward", "flex_dispatch_backward"};

/// A thread for each rank.
__device__ void book(Booked* booked, const RowsMoved& moved, int rank, int size) {
    const int peer = int(threadIdx.x);
    if (moved.rows == nullptr || peer >= size || peer == rank) return;
    booked[peer] += Booked(moved.rows[peer]) * Booked(moved.row_bytes);
}

}  // namespace

//! [PeerBarrier]
namespace {

/// What a kernel tells the host before it stops, in the host's memory.
struct WaitReport {
    std::uint32_t is_claimed, is_written, another_failed, awaited, expected, seen;
};

struct BarrierState {
    PeerTable flags;       ///< W' flags of 32 bits in each rank's memory
    std::uint32_t* epoch;  ///< meetings of mine so far
    WaitReport* report;
    const std::uint32_t* failed;  ///< not 0: stop waiting; or null
    std::uint64_t deadline;       ///< nanoseconds
};

__device__ std::uint32_t* flags_of(const PeerTable& table, int rank) {
    return reinterpret_cast<std::uint32_t*>(table.base[rank]);
}

/// Stops the kernel by the first of a block's threads that has something to tell, when it
/// has been told; the others end, since a trap of theirs might come before.
__device__ void give_up(const BarrierState& state, const WaitReport& told) {
    WaitReport& report = *state.report;
    if (atomicExch(&report.is_claimed, 1u) != 0u) return;
    report.another_failed = told.another_failed;
    report.awaited = told.awaited;
    report.expected = told.expected;
    report.seen = told.seen;
    gpu::ptx::st_release_sys(&report.is_written, 1);
    __trap();
}

/// One block, a thread for each rank.
__global__ void peer_barrier_kernel(BarrierState state, RowsMoved moved, Booked* booked) {
    const int peer = int(threadIdx.x), rank = state.flags.rank;
    book(booked, moved, rank, state.flags.size);
    const std::uint32_t epoch = *state.epoch + 1;
    __syncthreads();  // all have read it
    if (peer == 0) *state.epoch = epoch;
    if (peer >= state.flags.size) return;

    // TUTORIAL: the kernels before this one wrote into other GPUs' memory. They have
    // ended, so this thread has seen it, and a release hands on all that its thread has
    // seen: at .sys to every GPU, at .gpu only to this one. No fence besides: ptxas makes
    // a release of one (MEMBAR.ALL.SYS) and a store already.
    gpu::ptx::st_release_sys(flags_of(state.flags, peer) + rank, epoch);

    const std::uint32_t* const flag = flags_of(state.flags, rank) + peer;
    const std::uint64_t start = gpu::ptx::globaltimer();
    for (;;) {
        const std::uint32_t seen = gpu::ptx::ld_acquire_sys(flag);
        // A peer may be further already. The difference has a sign: counters may wrap
        if (std::int32_t(seen - epoch) >= 0) return;
        const bool failed =
            state.failed != nullptr && gpu::ptx::ld_acquire_sys(state.failed) != 0;
        if (failed || gpu::ptx::globaltimer() - start > state.deadline)
            return give_up(state, {1, 1, failed, std::uint32_t(peer), epoch, seen});
        __nanosleep(100);
    }
}

}  // namespace
//! [PeerBarrier]

namespace {

/// The traffic of both ways: counted where the counts are, read when somebody asks.
class BookingBarrier : public PeerBarrier {
  public:
    explicit BookingBarrier(std::shared_ptr<Communicator> group)
        : group_(std::move(group)),
          booked_(gpu::device_zeros<std::int64_t>({kBookedSteps, kMaxPeers})),
          source_(group_->ledger().add_source([this] { return read(); })) {}
    ~BookingBarrier() override { group_->ledger().remove_source(source_); }

  protected:
    Booked* booked(Step step) {
        return gpu::device_counts(booked_) + index_of(step) * kMaxPeers;
    }
    Communicator& group() const { return *group_; }

  private:
    /// Since the last call.
    Traffic read() {
        Traffic sent;
        const auto all = gpu::to_host<std::int64_t>(booked_);
        for (int step = 0; step < kBookedSteps; ++step)
            for (int r = 0; r < group_->size(); ++r) {
                const std::size_t i = step * kMaxPeers + r;
                if (all[i] > read_[i])
                    sent[kTrafficNames[step]][group_->world_rank(r)] += all[i] - read_[i];
            }
        read_ = all;
        return sent;
    }

    std::shared_ptr<Communicator> group_;
    Tensor booked_;
    std::vector<std::int64_t> read_ =
        std::vector<std::int64_t>(kBookedSteps * kMaxPeers, 0);
    int source_;
};

class FlagBarrier : public BookingBarrier {
  public:
    explicit FlagBarrier(const std::shared_ptr<Communicator>& group)
        : BookingBarrier(group),
          flags_(
              group->peer_memory(kMaxPeers * sizeof(std::uint32_t), MemorySpace::device)),
          epoch_(gpu::device_zeros<std::int32_t>({1})) {
        gpu::check(cudaMallocHost(&report_, sizeof *report_), "cudaMallocHost");
        *report_ = {};
        gpu::synchronize();
        group->barrier();  // nobody raises a flag before all are there, and are down
        const auto deadline =
            std::chrono::duration_cast<std::chrono::nanoseconds>(group->deadline());
        state_ = {
            flags_->table(),
            reinterpret_cast<std::uint32_t*>(gpu::device_data<std::int32_t>(epoch_)),
            report_, group->failure_flag(), std::uint64_t(deadline.count())};
    }
    ~FlagBarrier() override { cudaFreeHost(report_); }

    void meet(Step step, const RowsMoved& moved) override {
        if (group().size() == 1) return;
        // On the executor the kernel runs here, and the watchdog shall know in what.
        OpLedger& ledger = group().ledger();
        const gpu::MeetingScope meeting(group().members());
        operation_ = ledger.begin("barrier in a kernel of " + circled(step),
                                  group().name(), 0, group().members());
        try {
            gpu::launch("peer_barrier_kernel", peer_barrier_kernel, {1, kMaxPeers},
                        state_, moved, booked(step));
        } catch (const gpu::DeviceError&) {
            ledger.end();
            if (report_->is_written == 0) throw;
            if (report_->another_failed != 0) group().barrier();  // says who and why
            // Nothing that is torn down now may wait for who is not there.
            group().abort(why());
            throw CommunicatorError(story(), why());
        }
        ledger.end();
    }

  private:
    std::string why() const {
        if (report_->another_failed != 0) return "another rank has failed";
        return fmt::format("rank {} did not come within {} ms: its flag is at {} of {}",
                           group().world_rank(int(report_->awaited)),
                           group().deadline().count(), report_->seen, report_->expected);
    }
    std::string story() const {
        if (report_->is_written == 0) return "";
        return failure_line(group().world_rank(group().rank()), operation_, why());
    }

    std::shared_ptr<PeerMemory> flags_;
    Tensor epoch_;
    WaitReport* report_ = nullptr;
    BarrierState state_;
    Operation operation_;  // the last that was begun
    gpu::KernelReport told_{[this] { return story(); }};
};

__global__ void book_kernel(RowsMoved moved, Booked* booked, int rank, int size) {
    book(booked, moved, rank, size);
}

/// Ranks that are threads: they show each other events, and wait for each other to have
/// recorded them, which takes no longer than launching does.
class EventBarrier : public BookingBarrier {
  public:
    explicit EventBarrier(const std::shared_ptr<Communicator>& group)
        : BookingBarrier(group), events_(group->size()) {
        cudaEvent_t& mine = events_[group->rank()];
        gpu::check(cudaEventCreateWithFlags(&mine, cudaEventDisableTiming),
                   "cudaEventCreate");
        const Tensor part =
            Tensor::from<std::int64_t>({1}, {reinterpret_cast<std::intptr_t>(mine)});
        Tensor all = Tensor::empty({group->size()}, DType::i64);
        group->all_gather(all, part);
        for (int r = 0; r < group->size(); ++r)
            events_[r] = reinterpret_cast<cudaEvent_t>(all.data<std::int64_t>()[r]);
    }
    ~EventBarrier() override { cudaEventDestroy(events_[group().rank()]); }

    void meet(Step step, const RowsMoved& moved) override {
        if (group().size() == 1) return;
        const cudaStream_t stream = gpu::current_stream();
        const gpu::MeetingScope meeting(group().members());
        gpu::launch("book_kernel", book_kernel, {1, kMaxPeers}, moved, booked(step),
                    group().rank(), group().size());
        gpu::check(cudaEventRecord(events_[group().rank()], stream), "cudaEventRecord");
        group().barrier();  // all are recorded
        for (const cudaEvent_t event : events_)
            gpu::check(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
        group().barrier();  // all are waited for, and may be recorded again
    }

  private:
    std::vector<cudaEvent_t> events_;  // of each rank
};

}  // namespace

PeerBarrier::Way PeerBarrier::way_for(const Communicator& group) {
#ifdef __CUDACC__
    const bool runs_alone = false;
#else
    const bool runs_alone = cuda_on_cpu::options().streams == cuda_on_cpu::Streams::eager;
#endif
    return group.backend() == "threads" && !runs_alone ? Way::events : Way::flags;
}

std::unique_ptr<PeerBarrier> PeerBarrier::make(std::shared_ptr<Communicator> group,
                                               Way way) {
    if (way == Way::events) return std::make_unique<EventBarrier>(group);
    return std::make_unique<FlagBarrier>(group);
}

}  // namespace moe::distributed
