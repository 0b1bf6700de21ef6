// stream.cpp: queues of work, and who runs what is in them.

#include "stream.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "capture.h"
#include "error.h"
#include "schedule.h"

namespace cuda_on_cpu {

struct Queue {
    struct Item {
        Work work;
        observe::Ticket place;
        std::vector<Ticket> after;
    };
    bool blocking = true;  ///< the legacy default stream and this one wait for each other
    bool left = false;     ///< its stream was destroyed
    bool busy = false;     ///< a CPU thread runs its first item, or what that waits for
    std::deque<Item> items;
    std::uint64_t queued = 0, done = 0;  ///< tickets given; work that has ended
};

namespace {

/// All queues, by age; the default stream's is the first. One lock for all: held while
/// nothing runs but bookkeeping.
struct Queues {
    std::mutex mutex;
    std::condition_variable changed;  // a queue has got further
    std::vector<std::shared_ptr<Queue>> all = {std::make_shared<Queue>()};
    std::atomic<std::int64_t> waiting{0};  // items in them
    std::optional<SplitMix> random;        // begins anew when nothing waits
};

Queues& queues() {
    static auto* all = new Queues;  // tensors may outlive any static object
    return *all;
}

using Lock = std::unique_lock<std::mutex>;

const std::shared_ptr<Queue>& queue_of(cudaStream_t stream) {
    return stream == nullptr ? queues().all.front() : stream->queue;
}

/// The first error among the work of one demand, told when all is done.
struct Demand {
    cudaError_t error = cudaSuccess;
    std::string story;

    void note(cudaError_t failed) {
        note_held_failure(failed);
        if (error != cudaSuccess) return;
        error = failed;
        story = cudaGetErrorString(failed);
    }
    cudaError_t tell() const {
        const cudaError_t earlier = held_failure();  // this thread knows it now
        return error == cudaSuccess ? earlier : set_error(error, story);
    }
};

/// Runs the queue until `number` is done, other queues as far as that needs. A CPU thread
/// that finds a queue busy waits for its item to end. Nobody waits in a circle: work only
/// depends on what was queued before it.
void run_until(Lock& lock, Queue& queue, std::uint64_t number, Demand& demand) {
    while (queue.done < number) {
        if (queue.busy) {
            queues().changed.wait(lock);
            continue;
        }
        queue.busy = true;
        Queue::Item item = std::move(queue.items.front());
        queue.items.pop_front();
        for (const Ticket& before : item.after)
            run_until(lock, *before.queue, before.number, demand);
        lock.unlock();
        const cudaError_t error = item.work(item.place);
        item = {};
        lock.lock();
        if (error != cudaSuccess) demand.note(error);
        queue.busy = false;
        ++queue.done;
        --queues().waiting;
        queues().changed.notify_all();
    }
}

/// What a stream has got so far; of the default stream: the blocking ones, too.
std::vector<Ticket> tickets_of(const std::shared_ptr<Queue>& queue) {
    std::vector<Ticket> tickets;
    for (const std::shared_ptr<Queue>& other : queues().all) {
        const bool joined = queue == queues().all.front() && other->blocking;
        if ((other == queue || joined) && other->done < other->queued)
            tickets.push_back({other, other->queued});
    }
    return tickets;
}

/// Whose turn it is among those that have work left, by age.
std::size_t whose_turn(std::size_t candidates) {
    const Schedule& schedule = options().schedule;
    if (schedule.policy == Schedule::Policy::forward) return 0;
    if (schedule.policy == Schedule::Policy::reverse) return candidates - 1;
    if (!queues().random) queues().random.emplace(schedule.seed);
    return queues().random->below(candidates);
}

/// Runs the tickets, one item at a time.
cudaError_t run(Lock& lock, std::vector<Ticket> tickets) {
    Demand demand;
    for (;;) {
        std::erase_if(tickets, [](const Ticket& t) { return t.queue->done >= t.number; });
        if (tickets.empty()) break;
        Queue& next = *tickets[whose_turn(tickets.size())].queue;
        run_until(lock, next, next.done + 1, demand);
    }
    std::erase_if(queues().all, [](const std::shared_ptr<Queue>& queue) {
        return queue->left && queue->done == queue->queued;
    });
    if (queues().waiting == 0) queues().random.reset();
    lock.unlock();
    return demand.tell();
}

}  // namespace

bool holds_work() {
    return options().streams == Streams::held || queues().waiting > 0;
}

cudaError_t enqueue(cudaStream_t stream, Work work, observe::Ticket place, Ticket* ticket,
                    const Ticket& after) {
    if (const cudaError_t error = held_failure()) return error;
    const Lock lock(queues().mutex);
    const std::shared_ptr<Queue>& queue = queue_of(stream);
    const std::shared_ptr<Queue>& first = queues().all.front();
    Queue::Item item{std::move(work), place, {}};
    if (queue == first)
        item.after = tickets_of(first);
    else if (queue->blocking && first->done < first->queued)
        item.after = {{first, first->queued}};
    std::erase_if(item.after, [&](const Ticket& t) { return t.queue == queue; });
    if (after.queue != nullptr) item.after.push_back(after);
    queue->items.push_back(std::move(item));
    ++queue->queued;
    ++queues().waiting;
    if (ticket != nullptr) *ticket = {queue, queue->queued};
    return cudaSuccess;
}

cudaError_t demand(const Ticket& ticket) {
    if (ticket.queue == nullptr) return cudaSuccess;
    Lock lock(queues().mutex);
    return run(lock, {ticket});
}

cudaError_t demand_stream(cudaStream_t stream) {
    if (!holds_work()) return cudaSuccess;
    Lock lock(queues().mutex);
    return run(lock, tickets_of(queue_of(stream)));
}

cudaError_t demand_all() {
    if (!holds_work()) return cudaSuccess;
    Lock lock(queues().mutex);
    std::vector<Ticket> tickets;
    for (const std::shared_ptr<Queue>& queue : queues().all)
        tickets.push_back({queue, queue->queued});
    return run(lock, std::move(tickets));
}

bool is_done(const Ticket& ticket) {
    if (ticket.queue == nullptr) return true;
    Lock lock(queues().mutex);
    if (ticket.queue->done >= ticket.number) return true;
    run(lock, {{ticket.queue, ticket.queue->done + 1}});
    return false;
}

bool is_done(cudaStream_t stream) {
    if (!holds_work()) return true;
    Lock lock(queues().mutex);
    const std::vector<Ticket> tickets = tickets_of(queue_of(stream));
    if (tickets.empty()) return true;
    const std::shared_ptr<Queue>& first = tickets.front().queue;
    run(lock, {{first, first->done + 1}});
    return false;
}

cudaError_t submit(const char* function, cudaStream_t stream, Work work) {
    if (const cudaError_t error = check_stream(function, stream)) return error;
    if (is_captured(stream)) return capture_work(stream, std::move(work));
    const observe::Ticket place = observe::enqueued(stream);
    return holds_work() ? enqueue(stream, std::move(work), place) : work(place);
}

cudaError_t submit_and_wait(const char* function, cudaStream_t stream, Work work) {
    if (const cudaError_t error = check_stream(function, stream)) return error;
    const observe::Ticket place = observe::enqueued(stream);
    if (!holds_work()) return work(place);
    Ticket ticket;
    if (const cudaError_t error = enqueue(stream, std::move(work), place, &ticket))
        return error;
    return demand(ticket);
}

std::shared_ptr<Queue> make_queue(bool blocking) {
    const Lock lock(queues().mutex);
    queues().all.push_back(std::make_shared<Queue>());
    queues().all.back()->blocking = blocking;
    return queues().all.back();
}

void leave_queue(const std::shared_ptr<Queue>& queue) {
    const Lock lock(queues().mutex);
    queue->left = true;
    if (queue->done == queue->queued) std::erase(queues().all, queue);
}

}  // namespace cuda_on_cpu
