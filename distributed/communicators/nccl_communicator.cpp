// nccl_communicator.cpp: collectives over GPUs. Equal parts go by NCCL's own collectives,
// uneven ones by groups of broadcasts, reductions, or sends and receives.

#include <algorithm>

#include "distributed/communicators/agreement.h"
#include "distributed/communicators/nccl_state.h"
#include "distributed/communicators/staging.h"
#include "distributed/peer_memory/ipc_memory.h"
#include "distributed/peer_memory/window_memory.h"
#include "gpu/check.h"
#include "gpu/stream.h"

namespace moe::distributed {
namespace {

constexpr MemorySpace kDevice = MemorySpace::device;

/// That of gpu::launch: what a kernel wrote is there when NCCL reads it.
cudaStream_t stream() {
    return gpu::current_stream();
}

ncclDataType_t nccl_type(DType dtype) {
    switch (dtype) {
        case DType::f64: return ncclFloat64;
        case DType::f32: return ncclFloat32;
        case DType::bf16: return ncclBfloat16;
        case DType::i64: return ncclInt64;
        case DType::i32: return ncclInt32;
        case DType::u8: return ncclUint8;
    }
    return ncclUint8;
}

std::size_t count_of(const TensorView& tensor) {
    return std::size_t(tensor.numel());
}

bool all_equal(const Splits& rows) {
    return std::count(rows.begin(), rows.end(), rows[0]) == std::int64_t(rows.size());
}

class NcclCommunicator : public Communicator {
  public:
    using State = std::shared_ptr<NcclState>;
    using Abort = std::function<void(const std::string&)>;

    NcclCommunicator(std::string name, std::vector<int> members, int rank,
                     std::shared_ptr<OpLedger> ledger, ncclComm_t comm, State state,
                     Abort on_abort)
        : Communicator(std::move(name), std::move(members), rank, std::move(ledger)),
          comm_(comm),
          state_(std::move(state)),
          on_abort_(std::move(on_abort)) {
        const std::lock_guard lock(state_->mutex);
        state_->comms.push_back(comm_);
    }
    ~NcclCommunicator() override {
        {
            const std::lock_guard lock(state_->mutex);
            state_->comms.remove(comm_);
        }
        if (state_->failed) return;
        ncclCommFinalize(comm_);
        if (settle(comm_, state_->deadline) == ncclSuccess) ncclCommDestroy(comm_);
    }

    std::string backend() const override { return "NCCL"; }
    std::chrono::milliseconds deadline() const override { return state_->deadline; }
    void abort(const std::string& reason) override {
        state_->failed = true;
        on_abort_(reason);
    }

  protected:
    void do_barrier() override {
        const Tensor one = Tensor::zeros({1}, DType::i32, kDevice);
        reduce_everywhere(one);
    }

    void do_broadcast(const TensorView& data, int root) override {
        const Staged device = rank() == root ? Staged::to_read(data, kDevice)
                                             : Staged::to_fill(data, kDevice);
        if (data.numel() > 0)
            group([&] {
                return ncclBroadcast(device.view().bytes, device.view().bytes,
                                     count_of(data), nccl_type(data.dtype), root, comm_,
                                     stream());
            });
        if (rank() != root) device.write_back();
    }

    void do_all_gather(const TensorView& whole, const TensorView& part,
                       const Splits& rows) override {
        const Staged all = Staged::to_fill(whole, kDevice);
        const Staged mine = Staged::to_read(part, kDevice);
        const std::vector<TensorView> targets = blocks(all.view(), rows);
        const ncclDataType_t type = nccl_type(part.dtype);
        if (all_equal(rows) && part.numel() > 0) {
            group([&] {
                return ncclAllGather(mine.view().bytes, all.view().bytes, count_of(part),
                                     type, comm_, stream());
            });
        } else {
            group([&] {
                return for_each_block(targets, [&](int r) {
                    const void* source = r == rank() ? mine.view().bytes : nullptr;
                    return ncclBroadcast(source, targets[r].bytes, count_of(targets[r]),
                                         type, r, comm_, stream());
                });
            });
        }
        all.write_back();
    }

    void do_reduce_scatter(const TensorView& part, const TensorView& whole,
                           const Splits& rows) override {
        const Staged source = Staged::to_read(whole, kDevice);
        const Staged target = Staged::to_fill(part, kDevice);
        const std::vector<TensorView> sources = blocks(source.view(), rows);
        const ncclDataType_t type = nccl_type(part.dtype);
        if (all_equal(rows) && part.numel() > 0) {
            group([&] {
                return ncclReduceScatter(source.view().bytes, target.view().bytes,
                                         count_of(part), type, ncclSum, comm_, stream());
            });
        } else {
            group([&] {
                return for_each_block(sources, [&](int r) {
                    void* sum = r == rank() ? target.view().bytes : nullptr;
                    return ncclReduce(sources[r].bytes, sum, count_of(sources[r]), type,
                                      ncclSum, r, comm_, stream());
                });
            });
        }
        target.write_back();
    }

    void do_all_reduce(const TensorView& data) override {
        const Staged device = Staged::to_read(data, kDevice);
        reduce_everywhere(device.view());
        device.write_back();
    }

    /// Pairs without rows are skipped on both sides: both know the counts.
    void do_all_to_all(const TensorView& received, const TensorView& sent,
                       const Splits& received_rows, const Splits& sent_rows) override {
        const Staged source = Staged::to_read(sent, kDevice);
        const Staged target = Staged::to_fill(received, kDevice);
        const std::vector<TensorView> from = blocks(source.view(), sent_rows);
        const std::vector<TensorView> to = blocks(target.view(), received_rows);
        const ncclDataType_t type = nccl_type(sent.dtype);
        copy_block(to[rank()], from[rank()]);
        group([&] {
            ncclResult_t worst = for_each_block(from, [&](int r) {
                return r == rank() ? ncclSuccess
                                   : ncclSend(from[r].bytes, count_of(from[r]), type, r,
                                              comm_, stream());
            });
            const ncclResult_t receives = for_each_block(to, [&](int r) {
                return r == rank() ? ncclSuccess
                                   : ncclRecv(to[r].bytes, count_of(to[r]), type, r,
                                              comm_, stream());
            });
            return is_bad(worst) ? worst : receives;
        });
        target.write_back();
    }

    std::shared_ptr<PeerMemory> do_peer_memory(std::size_t bytes,
                                               MemorySpace space) override {
        if (size() == 1)
            return local_communicator(name(), world_rank(0), std::make_shared<OpLedger>())
                ->peer_memory(bytes, space);
        if (space != kDevice)
            reject("peer memory: space", "host",
                   "over NCCL it is on the device; use the alltoall dispatcher");
        auto memory = make_window_memory(comm_, rank(), size(), bytes, state_->deadline);
        const Splits one_each(size(), 1);
        if (memory == nullptr)
            memory =
                make_ipc_memory(rank(), size(), bytes,
                                [&](const TensorView& whole, const TensorView& part) {
                                    do_all_gather(whole, part, one_each);
                                });
        do_barrier();  // nobody writes before all have zeroed theirs
        return memory;
    }

    std::unique_ptr<Communicator> do_split(const std::string& name, int color,
                                           int key) override {
        // NCCL does not tell who is in the new group.
        const Tensor all = Tensor::empty({size(), 2}, DType::i64);
        do_all_gather(all, Tensor::from({1, 2}, std::vector<std::int64_t>{color, key}),
                      Splits(size(), 1));
        std::vector<Offer> offers(size());
        for (int r = 0; r < size(); ++r) {
            offers[r].color = int(all.data<std::int64_t>()[2 * r]);
            offers[r].key = int(all.data<std::int64_t>()[2 * r + 1]);
        }
        const std::vector<int> ranks = ranks_of_part(offers, rank());
        std::vector<int> part_members;
        for (int r : ranks) part_members.push_back(world_rank(r));
        const auto place = std::find(ranks.begin(), ranks.end(), rank()) - ranks.begin();
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        ncclComm_t part = nullptr;
        require(ncclCommSplit(comm_, color_of_part(ranks), int(place), &part, &config));
        require(settle(comm_, state_->deadline));
        require(settle(part, state_->deadline));
        return std::make_unique<NcclCommunicator>(name, part_members, int(place),
                                                  ledger_ptr(), part, state_, on_abort_);
    }

  private:
    [[noreturn]] void fail(const std::string& why) {
        state_->failed = true;
        throw CommunicatorError(
            failure_line(world_rank(rank()), ledger().running()->operation, why), why);
    }
    [[noreturn]] void fail_by_deadline() {
        fail(fmt::format("not all ranks of the group came within {} ms",
                         state_->deadline.count()));
    }
    /// For calls whose communicator has settled, or was given up.
    void require(ncclResult_t status) {
        if (is_bad(status)) fail(words_for(status, comm_));
    }

    /// Issues what `issue` calls as one, and waits until the device has done it.
    template <typename Issue>
    void group(Issue&& issue) {
        require(ncclGroupStart());
        const ncclResult_t issued = issue();
        const ncclResult_t ended = ncclGroupEnd();
        require(issued);
        require(ended);
        const ncclResult_t state = settle(comm_, state_->deadline);
        if (state == ncclInProgress) fail_by_deadline();
        require(state);
        wait_for_device();
    }

    /// TUTORIAL: cudaStreamSynchronize would wait for ever for a kernel whose peer is
    /// gone.
    void wait_for_device() {
        cudaError_t device = cudaErrorNotReady;
        ncclResult_t state = ncclSuccess;
        poll_until(state_->deadline, [&] {
            device = cudaStreamQuery(stream());
            if (is_bad(ncclCommGetAsyncError(comm_, &state))) state = ncclInternalError;
            return device != cudaErrorNotReady || is_bad(state);
        });
        require(state);
        if (device == cudaErrorNotReady) fail_by_deadline();
        gpu::check(device, "collective");
    }

    /// Calls `issue` with each rank whose block is not empty; the worst result.
    template <typename Issue>
    static ncclResult_t for_each_block(const std::vector<TensorView>& blocks,
                                       Issue&& issue) {
        ncclResult_t worst = ncclSuccess;
        for (std::size_t r = 0; r < blocks.size() && !is_bad(worst); ++r)
            if (blocks[r].numel() > 0) worst = issue(int(r));
        return worst;
    }

    void reduce_everywhere(const TensorView& data) {
        if (data.numel() == 0) return;
        group([&] {
            return ncclAllReduce(data.bytes, data.bytes, count_of(data),
                                 nccl_type(data.dtype), ncclSum, comm_, stream());
        });
    }

    ncclComm_t comm_;
    State state_;
    Abort on_abort_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(
    std::string name, std::vector<int> members, int rank,
    std::shared_ptr<OpLedger> ledger, ncclComm_t comm, std::shared_ptr<NcclState> state,
    std::function<void(const std::string& reason)> on_abort) {
    return std::make_unique<NcclCommunicator>(std::move(name), std::move(members), rank,
                                              std::move(ledger), comm, std::move(state),
                                              std::move(on_abort));
}

}  // namespace moe::distributed
