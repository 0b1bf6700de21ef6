/// @file
/// Communicator: what one rank can do together with the others of its group. The same
/// program of one rank runs over threads of one process (thread_communicator.h), over
/// processes without GPUs (mpi_communicator.h) and over GPUs (nccl_communicator.h).
///
/// A collective is called by every rank of the group, in the same order. It moves rows:
/// axis 0 of its tensors is cut by rank, the rest of the shape is the same everywhere.
/// Counts of rows may be zero and differ between ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "distributed/communicators/op_ledger.h"
#include "distributed/peer_memory/peer_memory.h"

namespace moe::distributed {

/// A collective that did not come about: a rank died, stayed away, called another
/// operation or brought other counts. One line that names rank, operation and group.
class CommunicatorError : public InputError {
  public:
    explicit CommunicatorError(const std::string& line) : CommunicatorError(line, line) {}
    /// @param reason  the line without rank and operation: what other ranks shall say
    CommunicatorError(const std::string& line, const std::string& reason)
        : InputError(line), reason_(reason) {}
    const std::string& reason() const { return reason_; }

  private:
    std::string reason_;
};

/// Rows per rank of a group, in rank order.
using Splits = std::vector<std::int64_t>;

/// One rank's end of a group. A rank is a thread, so calls on one object never overlap.
class Communicator {
  public:
    /// @param name     of the group, for messages: "ep", "tp_ep", …
    /// @param members  world rank of every rank of the group
    /// @param rank     mine within the group
    /// @param ledger   shared by all groups of this rank
    Communicator(std::string name, std::vector<int> members, int rank,
                 std::shared_ptr<OpLedger> ledger);
    virtual ~Communicator() = default;
    Communicator(const Communicator&) = delete;
    Communicator& operator=(const Communicator&) = delete;

    const std::string& name() const { return name_; }
    int rank() const { return rank_; }
    int size() const { return int(members_.size()); }
    /// World rank of rank `r` of this group.
    int world_rank(int r) const { return members_.at(r); }
    const std::vector<int>& members() const { return members_; }
    OpLedger& ledger() const { return *ledger_; }
    const std::shared_ptr<OpLedger>& ledger_ptr() const { return ledger_; }
    /// "threads", "MPI" or "NCCL".
    virtual std::string backend() const = 0;
    /// How long an operation waits for the other ranks.
    virtual std::chrono::milliseconds deadline() const = 0;
    /// A word that is not 0 once the group has failed, for kernels that wait for other
    /// ranks; null where failing ends the process.
    virtual const std::uint32_t* failure_flag() const { return nullptr; }

    /// Returns when every rank has called it.
    void barrier();

    /// Everybody's `data` becomes that of rank `root`.
    void broadcast(const TensorView& data, int root);

    /// whole = the parts of all ranks, one after another in rank order.
    /// @param whole (Σ rows, …) @param part (rows[rank], …)
    /// @param rows  of each rank's part; empty: all as mine
    void all_gather(const TensorView& whole, const TensorView& part,
                    const Splits& rows = {});

    /// part = my rows of the sum of everybody's `whole`. Sums run in ascending rank order
    /// over threads and MPI (fp32 for bf16, rounded once); NCCL chooses its own order.
    /// @param part (rows[rank], …) @param whole (Σ rows, …), floating-point or integer
    void reduce_scatter(const TensorView& part, const TensorView& whole,
                        const Splits& rows = {});

    /// data = the sum of everybody's `data`, in the same order on every rank.
    void all_reduce(const TensorView& data);

    /// Row blocks of `sent` go to the ranks in order; `received` collects theirs in
    /// order.
    /// @param received (Σ received_rows, …) @param sent (Σ sent_rows, …)
    void all_to_all(const TensorView& received, const TensorView& sent,
                    const Splits& received_rows, const Splits& sent_rows);

    /// Memory of `bytes` on every rank, zeroed, with everybody's address; see PeerMemory.
    /// InputError, the same on every rank, where this back-end has none.
    std::shared_ptr<PeerMemory> peer_memory(std::size_t bytes, MemorySpace space);

    /// Groups of the ranks that gave the same color, ordered by key, then by rank here.
    /// Source: MPI_Comm_split, ncclCommSplit.
    std::unique_ptr<Communicator> split(const std::string& name, int color, int key);

    /// Ends every rank's waiting with an error that names this rank and the reason.
    virtual void abort(const std::string& reason) = 0;

  protected:
    /// What the back-ends do; shapes and counts are checked before, groups of one rank
    /// never get here.
    virtual void do_barrier() = 0;
    virtual void do_broadcast(const TensorView& data, int root) = 0;
    virtual void do_all_gather(const TensorView& whole, const TensorView& part,
                               const Splits& rows) = 0;
    virtual void do_reduce_scatter(const TensorView& part, const TensorView& whole,
                                   const Splits& rows) = 0;
    virtual void do_all_reduce(const TensorView& data) = 0;
    virtual void do_all_to_all(const TensorView& received, const TensorView& sent,
                               const Splits& received_rows, const Splits& sent_rows) = 0;
    virtual std::shared_ptr<PeerMemory> do_peer_memory(std::size_t bytes,
                                                       MemorySpace space) = 0;
    virtual std::unique_ptr<Communicator> do_split(const std::string& name, int color,
                                                   int key) = 0;

  private:
    std::string name_;
    std::vector<int> members_;
    int rank_;
    std::shared_ptr<OpLedger> ledger_;
};

/// Rows [first, first + count) of a tensor.
TensorView rows_of(const TensorView& tensor, std::int64_t first, std::int64_t count);

/// Bytes of one row.
std::int64_t row_bytes(const TensorView& tensor);

/// A group of this rank alone: every collective is a copy.
/// @param world_rank  of this rank
std::unique_ptr<Communicator> local_communicator(std::string name, int world_rank,
                                                 std::shared_ptr<OpLedger> ledger);

}  // namespace moe::distributed
