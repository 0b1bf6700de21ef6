// rank_failures.cpp: what must end in an error on every rank.

#include <numeric>
#include <thread>

#include "tests/ranks/rank_scenarios.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::Splits;

Tensor ones(std::int64_t rows) {
    return Tensor::from({rows, 5}, std::vector<float>(rows * 5, 1.0f));
}

std::int64_t total(const Splits& rows) {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

void other_operation(Communicator& world) {
    world.barrier();
    if (world.rank() == 1) return world.barrier();
    world.all_reduce(ones(1));
}

void other_bytes(Communicator& world) {
    world.all_reduce(ones(world.rank() == 2 ? 4 : 3));
}

void other_root(Communicator& world) {
    world.broadcast(ones(2), world.rank() == 1 ? 1 : 0);
}

void other_rows(Communicator& world) {
    Splits rows(world.size(), 2);
    rows[2] = 1;
    if (world.rank() == 1) rows[0] = 1;
    world.all_gather(ones(total(rows)), ones(rows[world.rank()]), rows);
}

void other_counts(Communicator& world) {
    Splits sent(world.size(), 1), received(world.size(), 1);
    if (world.rank() == 2) received[1] = 3;
    world.all_to_all(ones(total(received)), ones(total(sent)), received, sent);
}

void other_in_part(Communicator& world) {
    const auto part = world.split("part", world.rank() == 0 ? 0 : 1, 0);
    if (world.rank() > 0) {
        if (world.rank() == 1) part->barrier();
        part->all_reduce(ones(1));
    }
    world.barrier();
}

void throws(Communicator& world) {
    world.barrier();
    if (world.rank() == 1) throw std::runtime_error("out of luck");
    world.barrier();
}

void ends_early(Communicator& world) {
    world.barrier();
    if (world.rank() != 1) world.all_reduce(ones(3));
}

void stays_away(Communicator& world) {
    world.barrier();
    // Far longer than the deadline of a test.
    if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    world.barrier();
}

}  // namespace

const std::vector<FailureScenario>& failure_scenarios() {
    static const std::vector<FailureScenario> scenarios = {
        {"other_operation",
         other_operation,
         {"group world: rank 0 called all_reduce while rank 1 called barrier"}},
        {"other_bytes",
         other_bytes,
         {"all_reduce #1 on group world", "ranks 0 and 2 differ in bytes"}},
        {"other_root",
         other_root,
         {"broadcast #1 on group world", "ranks 0 and 1 differ in root"}},
        {"other_rows",
         other_rows,
         {"all_gather #1 on group world", "ranks 0 and 1 differ in rows"}},
        {"other_counts",
         other_counts,
         {"all_to_all #1 on group world",
          "rank 1 sends 1 rows to rank 2, which expects 3"}},
        {"other_in_part",
         other_in_part,
         {"group part: rank 1 called barrier while rank 2 called all_reduce"},
         0},
        // A process that is slow to leave the first barrier ends in that one.
        {"throws", throws, {"barrier #", "on group world", "rank 1", "out of luck"}, 1},
        {"ends_early",
         ends_early,
         {"all_reduce #2 on group world", "rank 1 has ended without it"},
         1},
        {"stays_away",
         stays_away,
         {"barrier #2 on group world", "rank 1 did not come within"},
         1},
    };
    return scenarios;
}

const FailureScenario& find_failure(const std::string& name) {
    return find_by_name(failure_scenarios(), name);
}

}  // namespace moe::test
