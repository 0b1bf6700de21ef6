// schedule.cpp: what waits for what, over streams, hosts and ranks.

#include "cli/ranks/schedule.h"

#include <algorithm>
#include <map>

#include "core/error.h"

namespace moe {
namespace {

using gpu::LogEntry;

/// How much of every stream of every rank has to be done before something: a vector
/// clock.
using Done = std::map<std::pair<int, int>, int>;  // (rank, stream), number in it

void join(Done& done, const Done& other) {
    for (const auto& [row, number] : other) done[row] = std::max(done[row], number);
}

/// How far a stream or a host has got.
struct Front {
    int column = 0;  ///< the first that is free
    Done done;
    int number = 0;  ///< of its slots
    void wait_for(const Front& other) {
        column = std::max(column, other.column);
        join(done, other.done);
    }
};

struct Placed {
    Slot slot;
    Done done;
    int number = 0;
};

class Scheduler {
  public:
    explicit Scheduler(const std::vector<std::vector<LogEntry>>& logs)
        : logs_(logs), ranks_(logs.size()) {}

    Schedule run() {
        bool any = true;
        while (any) {
            any = false;
            for (int rank = 0; rank < int(logs_.size()); ++rank)
                while (step(rank)) any = true;
        }
        for (std::size_t r = 0; r < logs_.size(); ++r)
            MOE_CHECK_EQ(ranks_[r].at, logs_[r].size());  // who waits for an exchange?
        return result();
    }

  private:
    struct Rank {
        std::size_t at = 0;  ///< in its log
        Front host;
        std::map<int, Front> streams;
    };

    const LogEntry* next(int rank) const {
        const Rank& own = ranks_[rank];
        return own.at == logs_[rank].size() ? nullptr : &logs_[rank][own.at];
    }

    /// False when the rank has to wait for another, or is done.
    bool step(int rank) {
        const LogEntry* entry = next(rank);
        if (entry == nullptr) return false;
        switch (entry->kind) {
            case LogEntry::Kind::launch: place({rank}, Slot::Kind::kernel); break;
            case LogEntry::Kind::exchange: return meet(rank, Slot::Kind::exchange);
            case LogEntry::Kind::meeting: return meet(rank, Slot::Kind::meeting);
            case LogEntry::Kind::host_wait: wait(rank); break;
            case LogEntry::Kind::wait_for_stream: {
                Rank& own = ranks_[rank];
                // The event is recorded now, when the host has got so far.
                own.streams[entry->stream].wait_for(own.streams[entry->other]);
                break;
            }
        }
        if (entry->members.empty()) ++ranks_[rank].at;
        return true;
    }

    bool meet(int rank, Slot::Kind kind) {
        const LogEntry& mine = *next(rank);
        for (const int member : mine.members) {
            const LogEntry* other = next(member);
            if (other == nullptr || other->kind != mine.kind ||
                other->members != mine.members)
                return false;
            MOE_CHECK_EQ(other->name, mine.name);
        }
        const std::vector<int> members = mine.members;
        place(members, kind);
        for (const int member : members) ++ranks_[member].at;
        return true;
    }

    /// The same for all these ranks, in the first column that all of them have.
    void place(const std::vector<int>& members, Slot::Kind kind) {
        Front all;
        for (const int rank : members) {
            Rank& own = ranks_[rank];
            const LogEntry& entry = *next(rank);
            all.wait_for(own.host);
            if (entry.on_host) continue;
            Front& stream = own.streams[entry.stream];
            all.wait_for(stream);
            all.done[{rank, entry.stream}] = ++stream.number;
        }
        const int column = all.column++;
        for (const int rank : members) {
            Rank& own = ranks_[rank];
            const LogEntry& entry = *next(rank);
            const int stream = entry.on_host ? Slot::kHost : entry.stream;
            Front& front = entry.on_host ? own.host : own.streams[stream];
            front.column = all.column;
            front.done = all.done;
            placed_.push_back({{.kind = kind,
                                .name = entry.name,
                                .rank = rank,
                                .stream = stream,
                                .column = column,
                                .members = entry.members,
                                .backward = entry.backward},
                               all.done,
                               front.number});
        }
    }

    /// The host stands still until the stream, or all, are done.
    void wait(int rank) {
        Rank& own = ranks_[rank];
        const LogEntry& entry = *next(rank);
        const int from = own.host.column;
        for (const auto& [number, stream] : own.streams)
            if (entry.stream == LogEntry::kAllStreams || entry.stream == number)
                own.host.wait_for(stream);
        placed_.push_back({{.kind = Slot::Kind::host_wait,
                            .rank = rank,
                            .stream = Slot::kHost,
                            .column = from,
                            .width = own.host.column - from,
                            .backward = entry.backward},
                           own.host.done,
                           0});
    }

    static bool is_before(const Placed& a, const Placed& b) {
        const auto found = b.done.find({a.slot.rank, a.slot.stream});
        return found != b.done.end() && found->second >= a.number;
    }

    Schedule result() {
        Schedule schedule;
        for (const Rank& rank : ranks_) {
            const bool asked = !rank.streams.empty();
            schedule.streams.push_back(asked ? rank.streams.rbegin()->first + 1 : 0);
        }
        int first_backward = -1;
        for (Placed& a : placed_) {
            if (a.slot.stream != Slot::kHost)
                for (const Placed& b : placed_)
                    if (b.slot.rank == a.slot.rank && b.slot.stream != Slot::kHost &&
                        b.slot.stream != a.slot.stream && !is_before(a, b) &&
                        !is_before(b, a))
                        a.slot.beside = true;
            const int end = a.slot.column + a.slot.width;
            schedule.columns = std::max(schedule.columns, end);
            if (a.slot.backward && a.slot.kind != Slot::Kind::host_wait &&
                (first_backward < 0 || a.slot.column < first_backward))
                first_backward = a.slot.column;
        }
        for (Placed& a : placed_) schedule.slots.push_back(std::move(a.slot));
        schedule.backward_from = first_backward < 0 ? schedule.columns : first_backward;
        return schedule;
    }

    const std::vector<std::vector<LogEntry>>& logs_;
    std::vector<Rank> ranks_;
    std::vector<Placed> placed_;
};

/// Of the rank that has most of the slots that count.
template <typename Counts>
std::int64_t most(const Schedule& schedule, Counts counts) {
    std::vector<std::int64_t> by_rank(schedule.streams.size(), 0);
    for (const Slot& slot : schedule.slots)
        if (slot.beside && counts(slot)) ++by_rank[slot.rank];
    return by_rank.empty() ? 0 : *std::max_element(by_rank.begin(), by_rank.end());
}

}  // namespace

std::int64_t Schedule::beside() const {
    return most(*this, [](const Slot& slot) { return slot.stream > 0; });
}

std::int64_t Schedule::with() const {
    return most(*this, [](const Slot& slot) { return slot.stream == 0; });
}

Schedule schedule(const std::vector<std::vector<LogEntry>>& logs) {
    return Scheduler(logs).run();
}

}  // namespace moe
