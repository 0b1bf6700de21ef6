// mpi_communicator.cpp: collectives out of messages between pairs of ranks. Every
// operation is a meeting, where the ranks exchange their offers, and then moves rows.

#include "distributed/communicators/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "distributed/communicators/agreement.h"
#include "distributed/communicators/mpi_messages.h"
#include "distributed/communicators/reduction.h"
#include "distributed/communicators/staging.h"
#include "distributed/peer_memory/mpi_window.h"

namespace moe::distributed {

/// Shared by all groups of this process.
struct MpiSession::State {
    bool failed = false;
};

namespace {

/// An offer as a message: its length depends on the number of ranks only.
class OfferMessage {
  public:
    explicit OfferMessage(int ranks) : words_(kFixedWords + 2 * ranks, 0) {}
    OfferMessage(const Offer& offer, int ranks) : OfferMessage(ranks) {
        MOE_CHECK(offer.operation.size() < kNameWords * sizeof(std::int64_t));
        std::memcpy(words_.data(), offer.operation.data(), offer.operation.size());
        std::int64_t* next = &words_[kNameWords];
        for (std::int64_t field :
             {offer.bytes, std::int64_t(offer.root), std::int64_t(offer.color),
              std::int64_t(offer.key), std::int64_t(offer.received.size()),
              std::int64_t(offer.sent.size())})
            *next++ = field;
        std::copy(offer.received.begin(), offer.received.end(), next);
        std::copy(offer.sent.begin(), offer.sent.end(), next + ranks);
    }

    Offer offer(int ranks) const {
        const std::int64_t* fields = &words_[kNameWords];
        const auto splits = [&](std::int64_t count, int first) {
            const auto begin = words_.begin() + kFixedWords + first;
            return Splits(begin, begin + std::clamp<std::int64_t>(count, 0, ranks));
        };
        return {reinterpret_cast<const char*>(words_.data()),
                fields[0],
                int(fields[1]),
                int(fields[2]),
                int(fields[3]),
                splits(fields[4], 0),
                splits(fields[5], ranks)};
    }

    void* bytes() { return words_.data(); }
    std::size_t size() const { return words_.size() * sizeof(std::int64_t); }

  private:
    static constexpr int kNameWords = 3, kFixedWords = kNameWords + 6;
    std::vector<std::int64_t> words_;
};

constexpr MemorySpace kHost = MemorySpace::host;

class MpiCommunicator : public Communicator {
  public:
    MpiCommunicator(std::string name, std::vector<int> members, int rank,
                    std::shared_ptr<OpLedger> ledger, MPI_Comm comm,
                    std::chrono::milliseconds deadline, bool* failed,
                    std::function<void(const std::string&)> on_abort)
        : Communicator(std::move(name), std::move(members), rank, std::move(ledger)),
          comm_(comm),
          deadline_(deadline),
          failed_(failed),
          on_abort_(std::move(on_abort)) {
        MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    }
    ~MpiCommunicator() override {
        if (!*failed_) MPI_Comm_free(&comm_);
    }

    std::string backend() const override { return "MPI"; }
    std::chrono::milliseconds deadline() const override { return deadline_; }
    void abort(const std::string& reason) override {
        *failed_ = true;
        on_abort_(reason);
    }

  protected:
    void do_barrier() override { meet(offer()); }

    void do_broadcast(const TensorView& data, int root) override {
        Offer mine = offer(std::int64_t(data.size_bytes()));
        mine.root = root;
        meet(mine);
        const Staged host =
            rank() == root ? Staged::to_read(data, kHost) : Staged::to_fill(data, kHost);
        MpiMessages messages(comm_);
        if (rank() != root) receive(messages, root, host.view());
        if (rank() == root)
            for (int r = 0; r < size(); ++r)
                if (r != root) send(messages, r, host.view());
        wait(messages);
        if (rank() != root) host.write_back();
    }

    void do_all_gather(const TensorView& whole, const TensorView& part,
                       const Splits& rows) override {
        Offer mine = offer(row_bytes(part));
        mine.received = rows;
        meet(mine);
        const Staged all = Staged::to_fill(whole, kHost);
        gather(blocks(all.view(), rows), Staged::to_read(part, kHost).view());
        all.write_back();
    }

    void do_reduce_scatter(const TensorView& part, const TensorView& whole,
                           const Splits& rows) override {
        Offer mine = offer(row_bytes(whole));
        mine.received = rows;
        meet(mine);
        const Staged target = Staged::to_fill(part, kHost);
        sum_block(target.view(), blocks(Staged::to_read(whole, kHost).view(), rows));
        target.write_back();
    }

    /// Every rank sums one part of the elements, then all gather the parts.
    void do_all_reduce(const TensorView& data) override {
        meet(offer(std::int64_t(data.size_bytes())));
        const Staged host = Staged::to_read(data, kHost);
        TensorView elements = host.view();
        elements.shape = {data.numel(), 1};
        Splits rows(size());
        for (int r = 0; r < size(); ++r)
            rows[r] = data.numel() * (r + 1) / size() - data.numel() * r / size();
        const std::vector<TensorView> parts = blocks(elements, rows);
        const Tensor total = Tensor::empty(parts[rank()].shape, data.dtype);
        sum_block(total, parts);
        gather(parts, total);
        host.write_back();
    }

    void do_all_to_all(const TensorView& received, const TensorView& sent,
                       const Splits& received_rows, const Splits& sent_rows) override {
        Offer mine = offer(row_bytes(sent));
        mine.received = received_rows;
        mine.sent = sent_rows;
        meet(mine);
        const Staged source = Staged::to_read(sent, kHost),
                     target = Staged::to_fill(received, kHost);
        exchange(blocks(target.view(), received_rows), blocks(source.view(), sent_rows));
        target.write_back();
    }

    std::shared_ptr<PeerMemory> do_peer_memory(std::size_t bytes,
                                               MemorySpace space) override {
        meet(offer(std::int64_t(bytes)));
        const auto memory = allocate_window(comm_, name(), bytes, space, failed_);
        meet(offer());  // zeroed everywhere, before anybody writes
        return memory;
    }

    std::unique_ptr<Communicator> do_split(const std::string& name, int color,
                                           int key) override {
        Offer mine = offer();
        mine.color = color;
        mine.key = key;
        const std::vector<int> ranks = ranks_of_part(meet(mine), rank());
        std::vector<int> part_members;
        for (int r : ranks) part_members.push_back(world_rank(r));
        const auto place = std::find(ranks.begin(), ranks.end(), rank()) - ranks.begin();
        // All are here, so this does not wait for anybody's program. The key is the place
        // worked out above: one definition of the order.
        MPI_Comm part = MPI_COMM_NULL;
        check_mpi(MPI_Comm_split(comm_, color_of_part(ranks), int(place), &part),
                  "MPI_Comm_split");
        return std::make_unique<MpiCommunicator>(name, part_members, int(place),
                                                 ledger_ptr(), part, deadline_, failed_,
                                                 on_abort_);
    }

  private:
    Offer offer(std::int64_t bytes = 0) const {
        return {ledger().running()->operation.name, bytes, 0, 0, 0, {}, {}};
    }

    [[noreturn]] void fail(const std::string& why) {
        *failed_ = true;
        throw CommunicatorError(
            failure_line(world_rank(rank()), ledger().running()->operation, why), why);
    }

    /// Everybody's offers, once all are here with offers that fit together.
    std::vector<Offer> meet(const Offer& mine) {
        OfferMessage message(mine, size());
        std::vector<OfferMessage> theirs(size(), OfferMessage(size()));
        MpiMessages messages(comm_);
        for (int r = 0; r < size(); ++r)
            if (r != rank()) messages.receive(r, theirs[r].bytes(), theirs[r].size());
        for (int r = 0; r < size(); ++r)
            if (r != rank()) messages.send(r, message.bytes(), message.size());
        wait(messages);
        std::vector<Offer> offers;
        for (int r = 0; r < size(); ++r)
            offers.push_back(r == rank() ? mine : theirs[r].offer(size()));
        const std::string wrong = disagreement(name(), members(), offers);
        if (!wrong.empty()) fail(wrong);
        return offers;
    }

    /// Block r of `targets` comes from rank r, block r of `sources` goes there.
    void exchange(const std::vector<TensorView>& targets,
                  const std::vector<TensorView>& sources) {
        MpiMessages messages(comm_);
        for (int r = 0; r < size(); ++r)
            if (r != rank()) receive(messages, r, targets[r]);
        for (int r = 0; r < size(); ++r)
            if (r != rank()) send(messages, r, sources[r]);
        copy_block(targets[rank()], sources[rank()]);
        wait(messages);
    }

    /// Everybody's part, by rank.
    void gather(const std::vector<TensorView>& targets, const TensorView& part) {
        exchange(targets, std::vector<TensorView>(size(), part));
    }

    /// part = the sum of everybody's block for me, in ascending rank order.
    void sum_block(const TensorView& part, const std::vector<TensorView>& mine) {
        std::vector<Tensor> memory(size());
        std::vector<TensorView> theirs(size());
        for (int r = 0; r < size(); ++r) {
            if (r != rank()) memory[r] = Tensor::empty(part.shape, part.dtype);
            theirs[r] = r == rank() ? mine[r] : memory[r].view();
        }
        MpiMessages messages(comm_);
        for (int r = 0; r < size(); ++r)
            if (r != rank()) receive(messages, r, theirs[r]);
        for (int r = 0; r < size(); ++r)
            if (r != rank()) send(messages, r, mine[r]);
        wait(messages);
        if (part.numel() > 0) sum(part, theirs);
    }

    static void receive(MpiMessages& messages, int peer, const TensorView& target) {
        messages.receive(peer, target.bytes, target.size_bytes());
    }
    static void send(MpiMessages& messages, int peer, const TensorView& source) {
        messages.send(peer, source.bytes, source.size_bytes());
    }
    void wait(MpiMessages& messages) {
        if (const auto missing = messages.wait(deadline_))
            fail(fmt::format("rank {} did not come within {} ms", world_rank(*missing),
                             deadline_.count()));
    }

    MPI_Comm comm_;
    std::chrono::milliseconds deadline_;
    bool* failed_;  // the session's
    std::function<void(const std::string&)> on_abort_;
};

}  // namespace

MpiSession::MpiSession() : state_(std::make_shared<State>()) {
    int provided = 0;
    MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
}

MpiSession::~MpiSession() {
    if (!state_->failed) MPI_Finalize();
}

std::unique_ptr<Communicator> MpiSession::world(
    std::shared_ptr<OpLedger> ledger, std::chrono::milliseconds deadline,
    std::function<void(const std::string& reason)> on_abort) {
    std::vector<int> members(size_);
    std::iota(members.begin(), members.end(), 0);
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
    return std::make_unique<MpiCommunicator>("world", members, rank_, std::move(ledger),
                                             comm, deadline, &state_->failed,
                                             std::move(on_abort));
}

bool MpiSession::available() {
    return true;
}

}  // namespace moe::distributed
