// thread_communicator.cpp: collectives between threads. Every rank publishes what it
// brings, all meet, each takes what is meant for it from the others' memory, all meet
// again.

#include "distributed/thread_communicator.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <tuple>

#include "core/transfer.h"
#include "distributed/reduction.h"

namespace moe::distributed {
namespace {

/// What a rank brings to a collective.
struct Offer {
    Operation operation;
    TensorView data;        // what the others read; undefined for a barrier
    Splits received, sent;  // rows by rank, where the operation has them
    int root = 0, color = 0, key = 0;
};

/// The ranks of one group, as all its threads see them.
struct Group {
    std::vector<int> members;
    std::vector<Offer> offers;
    int arrived = 0;
    std::int64_t meetings = 0;
    std::map<int, std::shared_ptr<Group>> parts;  // of the split under way, by color
    std::vector<Tensor> heaps;                    // of the peer memory under way
};

/// Shared by all groups of one run_ranks(): one failure ends everything.
struct World {
    std::chrono::milliseconds deadline;
    std::mutex mutex;
    std::condition_variable changed;
    std::string failure;      // empty while all is well
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

    void abort(const std::string& reason) override {
        const std::lock_guard lock(world_->mutex);
        fail(fmt::format("rank {}: {}", world_rank(rank()), reason));
    }

  protected:
    void do_barrier() override { meet(offer()); }

    void do_broadcast(const TensorView& data, int root) override {
        Offer mine = offer(data);
        mine.root = root;
        exchange(mine, [&] {
            require_equal("root", [](const Offer& o) { return o.root; });
            require_equal("bytes", [](const Offer& o) { return o.data.size_bytes(); });
            if (rank() != root) copy_rows(data, offer_of(root).data);
        });
    }

    void do_all_gather(const TensorView& whole, const TensorView& part,
                       const Splits& rows) override {
        Offer mine = offer(part);
        mine.received = rows;
        exchange(mine, [&] {
            require_equal("rows", [](const Offer& o) { return o.received; });
            std::int64_t first = 0;
            for (int r = 0; r < size(); first += rows[r++])
                copy_rows(rows_of(whole, first, rows[r]), offer_of(r).data);
        });
    }

    void do_reduce_scatter(const TensorView& part, const TensorView& whole,
                           const Splits& rows) override {
        Offer mine = offer(whole);
        mine.received = rows;
        exchange(mine, [&] {
            require_equal("rows", [](const Offer& o) { return o.received; });
            const auto first =
                std::accumulate(rows.begin(), rows.begin() + rank(), std::int64_t{0});
            std::vector<TensorView> sources;
            for (int r = 0; r < size(); ++r)
                sources.push_back(rows_of(offer_of(r).data, first, rows[rank()]));
            if (part.numel() > 0) sum(part, sources);
        });
    }

    void do_all_reduce(const TensorView& data) override {
        // The others still read `data` while the sum is made: it goes elsewhere first.
        const Tensor total = Tensor::empty(data.shape, data.dtype, data.space);
        exchange(offer(data), [&] {
            require_equal("bytes", [](const Offer& o) { return o.data.size_bytes(); });
            std::vector<TensorView> sources;
            for (int r = 0; r < size(); ++r) sources.push_back(offer_of(r).data);
            if (data.numel() > 0) sum(total, sources);
        });
        copy_rows(data, total);
    }

    void do_all_to_all(const TensorView& received, const TensorView& sent,
                       const Splits& received_rows, const Splits& sent_rows) override {
        Offer mine = offer(sent);
        mine.received = received_rows;
        mine.sent = sent_rows;
        exchange(mine, [&] {
            require_matching_rows();
            std::int64_t to = 0;
            for (int r = 0; r < size(); to += received_rows[r++]) {
                const Offer& theirs = offer_of(r);
                const auto from = std::accumulate(
                    theirs.sent.begin(), theirs.sent.begin() + rank(), std::int64_t{0});
                copy_rows(rows_of(received, to, received_rows[r]),
                          rows_of(theirs.data, from, theirs.sent[rank()]));
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
            group_->heaps.resize(size());
            group_->heaps[rank()] = heap;
        }
        std::shared_ptr<PeerMemory> memory;
        exchange(offer(heap), [&] {
            require_equal("bytes", [](const Offer& o) { return o.data.size_bytes(); });
            PeerTable table{rank(), size(), {}};
            for (int r = 0; r < size(); ++r)
                table.base[r] = static_cast<std::byte*>(offer_of(r).data.bytes);
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
        exchange(mine, [&] {
            std::vector<std::pair<int, int>> order;  // key, rank here
            for (int r = 0; r < size(); ++r)
                if (offer_of(r).color == color) order.emplace_back(offer_of(r).key, r);
            std::sort(order.begin(), order.end());
            const std::lock_guard lock(world_->mutex);
            std::shared_ptr<Group>& shared = group_->parts[color];
            if (!shared) {
                shared = std::make_shared<Group>();
                for (const auto& [_, r] : order) shared->members.push_back(world_rank(r));
                shared->offers.resize(order.size());
            }
            part = shared;
            part_rank =
                int(std::find(order.begin(), order.end(), std::pair(key, rank())) -
                    order.begin());
        });
        // Once all have theirs, the next split starts from nothing.
        meet(offer(), [&] { group_->parts.clear(); });
        return std::make_unique<ThreadCommunicator>(name, world_, part, part_rank,
                                                    ledger_ptr());
    }

  private:
    Offer offer(const TensorView& data = {}) const {
        return {ledger().running()->operation, data, {}, {}, 0, 0, 0};
    }
    const Offer& offer_of(int r) const { return group_->offers[r]; }

    static void copy_rows(const TensorView& target, const TensorView& source) {
        if (source.size_bytes() > 0) copy(target, source);
    }

    /// Publishes `mine`, and takes from the others once all are here. Nobody leaves
    /// before all have taken: the offers point into their owners' memory.
    template <typename Take>
    void exchange(const Offer& mine, Take&& take) {
        meet(mine);
        try {
            take();
        } catch (const std::exception& error) {
            abort(error.what());
            leave_together();
            throw;
        }
        leave_together();
    }

    /// Waits until all ranks of the group are here, for the same operation. The last to
    /// come runs `last`, alone.
    template <typename Last>
    void meet(const Offer& mine, Last&& last) {
        std::unique_lock lock(world_->mutex);
        throw_if_failed();
        group_->offers[rank()] = mine;
        const auto check_then_last = [&] {
            if (!require_same_operation()) return false;
            last();
            return true;
        };
        if (!arrive(lock, check_then_last)) throw_if_failed();
    }
    void meet(const Offer& mine) {
        meet(mine, [] {});
    }

    /// Fails for all, and returns false, unless all came for the same operation.
    bool require_same_operation() {
        const std::string& expected = offer_of(0).operation.name;
        for (int r = 1; r < size(); ++r) {
            const std::string& called = offer_of(r).operation.name;
            if (called == expected) continue;
            fail(fmt::format("group {}: rank {} called {} while rank {} called {}",
                             name(), world_rank(0), expected, world_rank(r), called));
            return false;
        }
        return true;
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
        if (++group_->arrived == size()) {
            if (!last()) return false;
            group_->arrived = 0;
            ++group_->meetings;
            world_->changed.notify_all();
            return true;
        }
        world_->changed.wait_for(lock, world_->deadline, [&] {
            return group_->meetings != meeting || absent() >= 0 ||
                   (!despite_failure && !world_->failure.empty());
        });
        if (group_->meetings != meeting) return true;
        fail(absent() >= 0
                 ? fmt::format("rank {} has ended without it", absent())
                 : fmt::format("not all {} ranks of the group came within {} ms", size(),
                               world_->deadline.count()));
        return false;
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
        world_->changed.notify_all();
    }

    void throw_if_failed() const {
        if (world_->failure.empty()) return;
        throw CommunicatorError(fmt::format("rank {}: {} failed: {}", world_rank(rank()),
                                            to_string(ledger().running()->operation),
                                            world_->failure));
    }

    /// All ranks brought the same; otherwise all fail with the same words.
    template <typename Field>
    void require_equal(const char* what, Field&& field) const {
        for (int r = 1; r < size(); ++r)
            if (field(offer_of(r)) != field(offer_of(0)))
                throw CommunicatorError(
                    fmt::format("{} on group {}: ranks {} and {} differ in {}",
                                offer_of(0).operation.name, name(), world_rank(0),
                                world_rank(r), what));
    }

    void require_matching_rows() const {
        for (int from = 0; from < size(); ++from)
            for (int to = 0; to < size(); ++to)
                if (offer_of(from).sent[to] != offer_of(to).received[from])
                    throw CommunicatorError(fmt::format(
                        "all_to_all on group {}: rank {} sends {} rows to rank {}, which "
                        "expects {}",
                        name(), world_rank(from), offer_of(from).sent[to], world_rank(to),
                        offer_of(to).received[from]));
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
    auto group = std::make_shared<Group>();
    group->members.resize(world_size);
    std::iota(group->members.begin(), group->members.end(), 0);
    group->offers.resize(world_size);

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
