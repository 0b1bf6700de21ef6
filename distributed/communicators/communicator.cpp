// communicator.cpp: what every back-end shares: checks, books, and groups of one rank.

#include "distributed/communicators/communicator.h"

#include <numeric>

#include "core/transfer.h"
#include "gpu/device_log.h"
#include "gpu/thread_counters.h"

namespace moe::distributed {
namespace {

/// One operation in the ledger and in the counters, from construction to destruction.
class Entry {
  public:
    /// @param space  of what is exchanged
    Entry(const Communicator& group, const char* name, std::int64_t bytes,
          MemorySpace space = MemorySpace::host)
        : ledger_(group.ledger()) {
        ledger_.begin(name, group.name(), bytes, group.members());
        gpu::log_exchange(name, group.members(), space == MemorySpace::host);
    }
    ~Entry() { ledger_.end(); }
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

  private:
    OpLedger& ledger_;
    gpu::ExchangeScope scope_;
};

std::int64_t total(const Splits& rows) {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

/// Both are cut along axis 0 and agree in everything else.
void check_pair(const TensorView& a, const TensorView& b) {
    MOE_CHECK(a.dtype == b.dtype && a.space == b.space);
    MOE_CHECK(!a.shape.empty() && a.shape.size() == b.shape.size());
    MOE_CHECK_EQ(row_bytes(a), row_bytes(b));
}

void copy_rows(const TensorView& target, const TensorView& source) {
    if (source.size_bytes() > 0) copy(target, source);
}

/// The group of one rank; Communicator never calls its back-end.
class LocalCommunicator : public Communicator {
  public:
    using Communicator::Communicator;
    std::string backend() const override { return "one rank"; }
    std::chrono::milliseconds deadline() const override { return {}; }
    void abort(const std::string& reason) override {
        throw CommunicatorError(name() + ": " + reason);
    }

  protected:
    void do_barrier() override {}
    void do_broadcast(const TensorView&, int) override {}
    void do_all_gather(const TensorView&, const TensorView&, const Splits&) override {}
    void do_reduce_scatter(const TensorView&, const TensorView&, const Splits&) override {
    }
    void do_all_reduce(const TensorView&) override {}
    void do_all_to_all(const TensorView&, const TensorView&, const Splits&,
                       const Splits&) override {}
    std::shared_ptr<PeerMemory> do_peer_memory(std::size_t bytes,
                                               MemorySpace space) override {
        struct OwnMemory : PeerMemory {
            OwnMemory(const PeerTable& table, const Tensor& heap)
                : PeerMemory(table, heap.size_bytes(), heap.space()), heap_(heap) {}
            Tensor heap_;
        };
        const Tensor heap = Tensor::zeros({std::int64_t(bytes)}, DType::u8, space);
        PeerTable table{0, 1, {}};
        table.base[0] = static_cast<std::byte*>(heap.view().bytes);
        return std::make_shared<OwnMemory>(table, heap);
    }
    std::unique_ptr<Communicator> do_split(const std::string& name, int, int) override {
        return local_communicator(name, world_rank(0), ledger_ptr());
    }
};

}  // namespace

Communicator::Communicator(std::string name, std::vector<int> members, int rank,
                           std::shared_ptr<OpLedger> ledger)
    : name_(std::move(name)),
      members_(std::move(members)),
      rank_(rank),
      ledger_(std::move(ledger)) {
    MOE_CHECK(rank_ >= 0 && rank_ < size());
}

void Communicator::barrier() {
    if (size() == 1) return;
    const Entry entry(*this, "barrier", 0);
    do_barrier();
}

void Communicator::broadcast(const TensorView& data, int root) {
    MOE_CHECK(root >= 0 && root < size());
    if (size() == 1) return;
    const Entry entry(*this, "broadcast", std::int64_t(data.size_bytes()), data.space);
    if (rank_ == root)
        for (int r = 0; r < size(); ++r)
            if (r != rank_)
                ledger_->count_sent("broadcast", members_[r],
                                    std::int64_t(data.size_bytes()));
    do_broadcast(data, root);
}

void Communicator::all_gather(const TensorView& whole, const TensorView& part,
                              const Splits& given) {
    check_pair(whole, part);
    const Splits rows = given.empty() ? Splits(size(), part.dim(0)) : given;
    MOE_CHECK_EQ(int(rows.size()), size());
    MOE_CHECK_EQ(rows[rank_], part.dim(0));
    MOE_CHECK_EQ(total(rows), whole.dim(0));
    if (size() == 1) return copy_rows(whole, part);
    const auto bytes = std::int64_t(part.size_bytes());
    const Entry entry(*this, "all_gather", bytes, part.space);
    for (int r = 0; r < size(); ++r)
        if (r != rank_) ledger_->count_sent("all_gather", members_[r], bytes);
    do_all_gather(whole, part, rows);
}

void Communicator::reduce_scatter(const TensorView& part, const TensorView& whole,
                                  const Splits& given) {
    check_pair(part, whole);
    const Splits rows = given.empty() ? Splits(size(), part.dim(0)) : given;
    MOE_CHECK_EQ(int(rows.size()), size());
    MOE_CHECK_EQ(rows[rank_], part.dim(0));
    MOE_CHECK_EQ(total(rows), whole.dim(0));
    if (size() == 1) return copy_rows(part, whole);
    const Entry entry(*this, "reduce_scatter", std::int64_t(whole.size_bytes()),
                      part.space);
    for (int r = 0; r < size(); ++r)
        if (r != rank_)
            ledger_->count_sent("reduce_scatter", members_[r],
                                rows[r] * row_bytes(whole));
    do_reduce_scatter(part, whole, rows);
}

void Communicator::all_reduce(const TensorView& data) {
    if (size() == 1) return;
    const auto bytes = std::int64_t(data.size_bytes());
    const Entry entry(*this, "all_reduce", bytes, data.space);
    for (int r = 0; r < size(); ++r)
        if (r != rank_) ledger_->count_sent("all_reduce", members_[r], bytes);
    do_all_reduce(data);
}

void Communicator::all_to_all(const TensorView& received, const TensorView& sent,
                              const Splits& received_rows, const Splits& sent_rows) {
    check_pair(received, sent);
    MOE_CHECK_EQ(int(received_rows.size()), size());
    MOE_CHECK_EQ(int(sent_rows.size()), size());
    MOE_CHECK_EQ(total(received_rows), received.dim(0));
    MOE_CHECK_EQ(total(sent_rows), sent.dim(0));
    if (size() == 1) return copy_rows(received, sent);
    const Entry entry(*this, "all_to_all", std::int64_t(sent.size_bytes()), sent.space);
    for (int r = 0; r < size(); ++r)
        if (r != rank_ && sent_rows[r] > 0)
            ledger_->count_sent("all_to_all", members_[r],
                                sent_rows[r] * row_bytes(sent));
    do_all_to_all(received, sent, received_rows, sent_rows);
}

std::shared_ptr<PeerMemory> Communicator::peer_memory(std::size_t bytes,
                                                      MemorySpace space) {
    if (size() > kMaxPeers)
        reject("peer memory: ranks of group " + name_, size(),
               fmt::format("must be at most {}", kMaxPeers));
    const Entry entry(*this, "peer_memory", std::int64_t(bytes));
    return do_peer_memory(bytes, space);
}

std::unique_ptr<Communicator> Communicator::split(const std::string& name, int color,
                                                  int key) {
    if (size() == 1) return local_communicator(name, members_[0], ledger_);
    const Entry entry(*this, "split", 0);
    return do_split(name, color, key);
}

TensorView rows_of(const TensorView& tensor, std::int64_t first, std::int64_t count) {
    MOE_CHECK(first >= 0 && count >= 0 && first + count <= tensor.dim(0));
    TensorView rows = tensor;
    rows.shape[0] = count;
    rows.bytes = static_cast<std::byte*>(tensor.bytes) + first * row_bytes(tensor);
    return rows;
}

std::int64_t row_bytes(const TensorView& tensor) {
    std::int64_t bytes = std::int64_t(size_of(tensor.dtype));
    for (std::size_t axis = 1; axis < tensor.shape.size(); ++axis)
        bytes *= tensor.shape[axis];
    return bytes;
}

std::unique_ptr<Communicator> local_communicator(std::string name, int world_rank,
                                                 std::shared_ptr<OpLedger> ledger) {
    return std::make_unique<LocalCommunicator>(
        std::move(name), std::vector<int>{world_rank}, 0, std::move(ledger));
}

}  // namespace moe::distributed
