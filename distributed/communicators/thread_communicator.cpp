// thread_communicator.cpp: collectives between threads. Every rank publishes what it
// brings, all meet, each takes what is meant for it from the others' memory, all meet
// again.

#include "distributed/communicators/thread_communicator.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cuda_runtime.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "core/transfer.h"
#include "distributed/communicators/agreement.h"
#include "distributed/communicators/reduction.h"

namespace moe::distributed {
namespace {

/// The ranks of one group, as all its threads see them.
struct Group {
    std::vector<int> members;
    std::vector<Offer> offers;
    std::vector<TensorView> data;  // of each rank, which the others read
    std::vector<bool> here;        // ranks that came to the meeting under way
    int arrived = 0;
    std::int64_t meetings = 0;
    std::map<int, std::shared_ptr<Group>> parts;  // of the split under way, by color
    std::vector<Tensor> heaps;                    // of the peer memory under way

    explicit Group(std::vector<int> members_of_it)
        : members(std::move(members_of_it)),
          offers(members.size()),
          data(members.size()),
          here(members.size(), false),
          heaps(members.size()) {}
};

/// A word that kernels can read as well; without a device there is none.
class SharedFlag {
  public:
    SharedFlag() {
        if (cudaMallocHost(&word_, sizeof *word_) != cudaSuccess) {
            cudaGetLastError();
            word_ = nullptr;
        } else {
            *word_ = 0;
        }
    }
    ~SharedFlag() { cudaFreeHost(word_); }
    SharedFlag(const SharedFlag&) = delete;
    SharedFlag& operator=(const SharedFlag&) = delete;

    void raise() {
        if (word_ != nullptr) __atomic_store_n(word_, 1u, __ATOMIC_RELEASE);
    }
    const std::uint32_t* word() const { return word_; }

  private:
    std::uint32_t* word_ = nullptr;
};

/// Shared by all groups of one run_ranks(): one failure ends everything.
struct World {
    std::chrono::milliseconds deadline;
    std::mutex mutex;
    std::condition_variable changed;
    std::string failure;      // empty while all is well
    SharedFlag failed;        // the same, for kernels
    std::vector<bool> ended;  // ranks whose program has returned
};

class ThreadCommunicator : public Communicator {
  public:
    ThreadCommunicator(std::string name, std::shared_ptr<World> world,
                       std::shared_ptr<Group> group, int rank,
                       std::shared_ptr<OpLedger> ledger)
        : Communicator(std::move(name), group->members, rank, std::move(ledger)),
          world_(std::move(world)),
          group_(std::move(group)) {}

    std::string backend() const override { return "threads"; }
    std::chrono::milliseconds deadline() const override { return world_->deadline; }
    const std::uint32_t* failure_flag() const override { return world_->failed.word(); }

    void abort(const std::string& reason) override {
        const std::lock_guard lock(world_->mutex);
        fail(fmt::format("rank {}: {}", world_rank(rank()), reason));
    }

  protected:
    void do_barrier() override { meet(offer()); }

    void do_broadcast(const TensorView& data, int root) override {
        Offer mine = offer(data.size_bytes());
        mine.root = root;
        exchange(mine, data, [&] {
            if (rank() != root) copy_rows(data, data_of(root));
        });
    }

    void do_all_gather(const TensorView& whole, const TensorView& part,
                       const Splits& rows) override {
        Offer mine = offer(row_bytes(part));
        mine.received = rows;
        exchange(mine, part, [&] {
            std::int64_t first = 0;
            for (int r = 0; r < size(); first += rows[r++])
                copy_rows(rows_of(whole, first, rows[r]), data_of(r));
        });
    }

    void do_reduce_scatter(const TensorView& part, const TensorView& whole,
                           const Splits& rows) override {
        Offer mine = offer(row_bytes(whole));
        mine.received = rows;
        exchange(mine, whole, [&] {
            const auto first =
                std::accumulate(rows.begin(), rows.begin() + rank(), std::int64_t{0});
            std::vector<TensorView> sources;
            for (int r = 0; r < size(); ++r)
                sources.push_back(rows_of(data_of(r), first, rows[rank()]));
            if (part.numel() > 0) sum(part, sources);
        });
    }

    void do_all_reduce(const TensorView& data) override {
        // The others still read `data` while the sum is made: it goes elsewhere first.
        const Tensor total = Tensor::empty(data.shape, data.dtype, data.space);
        exchange(offer(data.size_bytes()), data, [&] {
            if (data.numel() > 0) sum(total, group_->data);
        });
        copy_rows(data, total);
    }

    void do_all_to_all(const TensorView& received, const TensorView& sent,
                       const Splits& received_rows, const Splits& sent_rows) override {
        Offer mine = offer(row_bytes(sent));
        mine.received = received_rows;
        mine.sent = sent_rows;
        exchange(mine, sent, [&] {
            std::int64_t to = 0;
            for (int r = 0; r < size(); to += received_rows[r++]) {
                const Splits& theirs = group_->offers[r].sent;
                const auto from = std::accumulate(theirs.begin(), theirs.begin() + rank(),
                                                  std::int64_t{0});
                copy_rows(rows_of(received, to, received_rows[r]),
                          rows_of(data_of(r), from, theirs[rank()]));
            }
        });
    }

    std::shared_ptr<PeerMemory> do_peer_memory(std::size_t bytes,
                                               MemorySpace space) override {
        /// Every rank keeps every heap alive.
        struct SharedMemory : PeerMemory {
            SharedMemory(const PeerTable& table, const std::vector<Tensor>& heaps)
                : PeerMemory(table, heaps[table.rank].size_bytes(), heaps[0].space()),
                  heaps_(heaps) {}
            std::vector<Tensor> heaps_;
        };
        const Tensor heap = Tensor::zeros({std::int64_t(bytes)}, DType::u8, space);
        {
            const std::lock_guard lock(world_->mutex);
            group_->heaps[rank()] = heap;
        }
        std::shared_ptr<PeerMemory> memory;
        exchange(offer(std::int64_t(bytes)), heap, [&] {
            PeerTable table{rank(), size(), {}};
            for (int r = 0; r < size(); ++r)
                table.base[r] = static_cast<std::byte*>(data_of(r).bytes);
            memory = std::make_shared<SharedMemory>(table, group_->heaps);
        });
        const std::lock_guard lock(world_->mutex);
        group_->heaps[rank()] = {};
        return memory;
    }

    std::unique_ptr<Communicator> do_split(const std::string& name, int color,
                                           int key) override {
        Offer mine = offer();
        mine.color = color;
        mine.key = key;
        std::shared_ptr<Group> part;
        int part_rank = 0;
        exchange(mine, {}, [&] {
            const std::vector<int> ranks = ranks_of_part(group_->offers, rank());
            part_rank =
                int(std::find(ranks.begin(), ranks.end(), rank()) - ranks.begin());
            const std::lock_guard lock(world_->mutex);
            std::shared_ptr<Group>& shared = group_->parts[color];
            if (!shared) {
                std::vector<int> part_members;
                for (int r : ranks) part_members.push_back(world_rank(r));
                shared = std::make_shared<Group>(part_members);
            }
            part = shared;
        });
        // Once all have theirs, the next split starts from nothing.
        meet(offer(), {}, [&] { group_->parts.clear(); });
        return std::make_unique<ThreadCommunicator>(name, world_, part, part_rank,
                                                    ledger_ptr());
    }

  private:
    Offer offer(std::int64_t bytes = 0) const {
        return {ledger().running()->operation.name, bytes, 0, 0, 0, {}, {}};
    }
    const TensorView& data_of(int r) const { return group_->data[r]; }

    static void copy_rows(const TensorView& target, const TensorView& source) {
        if (source.size_bytes() > 0) copy(target, source);
    }

    /// Publishes `mine` and `data`, and takes from the others once all are here. Nobody
    /// leaves before all have taken: `data` is in its owner's memory.
    template <typename Take>
    void exchange(const Offer& mine, const TensorView& data, Take&& take) {
        meet(mine, data, [] {});
        try {
            take();
        } catch (const std::exception& error) {
            abort(error.what());
            leave_together();
            throw;
        }
        leave_together();
    }

    /// Waits until all ranks of the group are here, with offers that fit together. The
    /// last to come runs `last`, alone.
    template <typename Last>
    void meet(const Offer& mine, const TensorView& data, Last&& last) {
        std::unique_lock lock(world_->mutex);
        throw_if_failed();
        group_->offers[rank()] = mine;
        group_->data[rank()] = data;
        const auto check_then_last = [&] {
            const std::string wrong = disagreement(name(), members(), group_->offers);
            if (!wrong.empty()) fail(wrong);
            if (wrong.empty()) last();
            return wrong.empty();
        };
        if (!arrive(lock, check_then_last)) throw_if_failed();
    }
    void meet(const Offer& mine) {
        meet(mine, {}, [] {});
    }

    /// The second meeting of an exchange. It also waits when something has failed: the
    /// others may still be copying from here, and they never wait for long.
    void leave_together() {
        std::unique_lock lock(world_->mutex);
        arrive(
            lock, [] { return true; }, true);
        throw_if_failed();
    }

    /// True when all ranks came, and `last`, which the last to come runs, returned true;
    /// false when something failed.
    template <typename Last>
    bool arrive(std::unique_lock<std::mutex>& lock, Last&& last,
                bool despite_failure = false) {
        const std::int64_t meeting = group_->meetings;
        group_->here[rank()] = true;
        if (++group_->arrived == size()) {
            if (!last()) return false;
            group_->arrived = 0;
            group_->here.assign(size(), false);
            ++group_->meetings;
            world_->changed.notify_all();
            return true;
        }
        world_->changed.wait_for(lock, world_->deadline, [&] {
            return group_->meetings != meeting || absent() >= 0 ||
                   (!despite_failure && !world_->failure.empty());
        });
        if (group_->meetings != meeting) return true;
        if (world_->failure.empty())
            fail(absent() >= 0 ? fmt::format("rank {} has ended without it", absent())
                               : fmt::format("rank {} did not come within {} ms",
                                             missing(), world_->deadline.count()));
        return false;
    }

    /// World rank of the first member that has not come to the meeting under way.
    int missing() const {
        const auto& here = group_->here;
        return world_rank(int(std::find(here.begin(), here.end(), false) - here.begin()));
    }

    /// World rank of a member whose program has ended, or -1.
    int absent() const {
        for (int member : members())
            if (world_->ended[member]) return member;
        return -1;
    }

    /// Call with the world locked. The first failure stands.
    void fail(const std::string& what) {
        if (world_->failure.empty()) world_->failure = what;
        world_->failed.raise();
        world_->changed.notify_all();
    }

    void throw_if_failed() const {
        if (world_->failure.empty()) return;
        throw CommunicatorError(
            failure_line(world_rank(rank()), ledger().running()->operation,
                         world_->failure),
            world_->failure);
    }

    std::shared_ptr<World> world_;
    std::shared_ptr<Group> group_;
};

}  // namespace

void run_ranks(int world_size, const std::function<void(Communicator& world)>& program,
               std::chrono::milliseconds deadline) {
    MOE_CHECK(world_size >= 1);
    auto world = std::make_shared<World>();
    world->deadline = deadline;
    world->ended.resize(world_size, false);
    std::vector<int> ranks(world_size);
    std::iota(ranks.begin(), ranks.end(), 0);
    const auto group = std::make_shared<Group>(ranks);

    std::exception_ptr first_failure;
    const auto run = [&](int rank) {
#ifdef _OPENMP
        omp_set_num_threads(1);  // of this thread only: the ranks share the cores
#endif
        ThreadCommunicator communicator("world", world, group, rank,
                                        std::make_shared<OpLedger>());
        std::string failure;
        try {
            program(communicator);
        } catch (const std::exception& error) {
            failure = error.what();
            const std::lock_guard lock(world->mutex);
            if (!first_failure) first_failure = std::current_exception();
        }
        if (!failure.empty()) communicator.abort(failure);
        const std::lock_guard lock(world->mutex);
        world->ended[rank] = true;
        world->changed.notify_all();
    };
    std::vector<std::thread> threads;
    for (int rank = 0; rank < world_size; ++rank) threads.emplace_back(run, rank);
    for (std::thread& thread : threads) thread.join();
    if (first_failure) std::rethrow_exception(first_failure);
}

}  // namespace moe::distributed
