// rank_scenarios.cpp: the collectives.

#include "tests/ranks/rank_scenarios.h"

#include <chrono>
#include <cstring>
#include <thread>

#include "tests/ranks/rank_values.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::rows_of;

constexpr DType kSummable[] = {DType::f64, DType::f32, DType::bf16, DType::i64,
                               DType::i32};

/// Steady clock, the same in all processes of a machine.
std::int64_t now() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

void barrier(Communicator& world, MemorySpace) {
    for (int late = 0; late < world.size(); ++late) {
        if (world.rank() == late)
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        const std::int64_t came = now();
        world.barrier();
        const std::int64_t left = now();
        const Tensor mine = Tensor::from({1, 2}, std::vector<std::int64_t>{came, left});
        const Tensor all = Tensor::empty({world.size(), 2}, DType::i64);
        world.all_gather(all, mine);
        const std::int64_t* times = all.view().data<std::int64_t>();
        for (int a = 0; a < world.size(); ++a)
            for (int b = 0; b < world.size(); ++b)
                expect(times[2 * a + 1] >= times[2 * b],
                       fmt::format("rank {} to wait for rank {} in the barrier", a, b));
    }
}

void broadcast(Communicator& world, MemorySpace space) {
    for (int root = 0; root < world.size(); ++root)
        for (DType dtype : kSummable)
            for (std::int64_t rows : {0, 1, 7}) {
                const Tensor data =
                    tensor_of(values_of(world.rank(), rows), dtype, space);
                world.broadcast(data, root);
                expect_values(data, values_of(root, rows),
                              fmt::format("broadcast from {}", root));
            }
}

void all_gather(Communicator& world, MemorySpace space) {
    for (const Splits& rows : interesting_splits(world.size()))
        for (DType dtype : {DType::f32, DType::bf16, DType::i64}) {
            const Tensor whole = untouched(total(rows), dtype, space);
            const std::int64_t mine = rows[world.rank()];
            world.all_gather(
                whole, tensor_of(values_of(world.rank(), mine), dtype, space), rows);
            Values expected;
            for (int r = 0; r < world.size(); ++r)
                append(expected, values_of(r, rows[r]));
            expect_values(whole, expected, "all_gather");
        }
    const Tensor whole = untouched(2 * world.size(), DType::f64, space);
    world.all_gather(whole, tensor_of(values_of(world.rank(), 2), DType::f64, space));
    Values expected;
    for (int r = 0; r < world.size(); ++r) append(expected, values_of(r, 2));
    expect_values(whole, expected, "all_gather of equal parts");
}

void reduce_scatter(Communicator& world, MemorySpace space) {
    for (const Splits& rows : interesting_splits(world.size()))
        for (DType dtype : kSummable) {
            const std::int64_t mine = rows[world.rank()];
            const std::int64_t first = std::accumulate(
                rows.begin(), rows.begin() + world.rank(), std::int64_t{0});
            const Tensor part = untouched(mine, dtype, space);
            const Tensor whole =
                tensor_of(values_of(world.rank(), total(rows)), dtype, space);
            world.reduce_scatter(part, whole, rows);
            Values expected(mine * kWidth, 0.0);
            for (int r = 0; r < world.size(); ++r) {
                const Values theirs = values_of(r, mine, first);
                for (std::size_t i = 0; i < expected.size(); ++i)
                    expected[i] += theirs[i];
            }
            expect_values(part, rounded(expected, dtype), "reduce_scatter");
            expect_values(whole, values_of(world.rank(), total(rows)),
                          "reduce_scatter's input");
        }
}

void all_reduce(Communicator& world, MemorySpace space) {
    for (DType dtype : kSummable)
        for (std::int64_t rows : {0, 1, 9}) {
            const Tensor data = tensor_of(values_of(world.rank(), rows), dtype, space);
            world.all_reduce(data);
            Values expected(rows * kWidth, 0.0);
            for (int r = 0; r < world.size(); ++r) {
                const Values theirs = values_of(r, rows);
                for (std::size_t i = 0; i < expected.size(); ++i)
                    expected[i] += theirs[i];
            }
            expect_values(data, rounded(expected, dtype), "all_reduce");
        }
}

/// Values whose fp32 sum depends on the order: (1e8 + 1) - 1e8 is 0, (1e8 - 1e8) + 1
/// is 1.
float order_value(int rank, std::int64_t i) {
    const float large = 1e8f * float((rank + i) % 3 - 1);
    return large + float(rank % 2 == 0 ? 0 : i % 7) + 0.3f * float(rank);
}

void ascending_order(Communicator& world, MemorySpace space) {
    constexpr std::int64_t kCount = 2'060;  // sums run in pieces
    std::vector<float> mine(kCount), expected(kCount);
    for (std::int64_t i = 0; i < kCount; ++i) {
        mine[i] = order_value(world.rank(), i);
        expected[i] = order_value(0, i);
        for (int r = 1; r < world.size(); ++r) expected[i] += order_value(r, i);
    }
    const Tensor data = transfer(Tensor::from({kCount, 1}, mine), {space, DType::f32});
    const Tensor part = Tensor::empty({kCount, 1}, DType::f32, space);
    Splits rows(world.size(), 0);
    for (int owner = 0; owner < world.size(); ++owner) {
        rows.assign(world.size(), 0);
        rows[owner] = kCount;
        const std::int64_t count = owner == world.rank() ? kCount : 0;
        world.reduce_scatter(rows_of(part, 0, count), data, rows);
    }
    expect_values(part, Values(expected.begin(), expected.end()),
                  "reduce_scatter in ascending order");
    world.all_reduce(data);
    expect_values(data, Values(expected.begin(), expected.end()),
                  "all_reduce in ascending order");
}

/// Whatever the order of a sum, it is one and the same on every rank.
void same_bits(Communicator& world, MemorySpace space) {
    std::vector<float> mine(64);
    for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = order_value(world.rank(), i);
    const Tensor data = transfer(Tensor::from({1, 64}, mine), {space, DType::f32});
    world.all_reduce(data);
    const Tensor all = Tensor::empty({world.size(), 64}, DType::f32, space);
    world.all_gather(all, data);
    const Tensor host = transfer(all, {MemorySpace::host, DType::f32});
    const auto* bits = static_cast<const std::byte*>(host.view().bytes);
    for (int r = 1; r < world.size(); ++r)
        expect(std::memcmp(bits, bits + r * 256, 256) == 0,
               fmt::format("rank {} to have the bits of rank 0 after all_reduce", r));
}

/// Runs an all-to-all of `rows(from, to)` rows; row j from a to b starts with the values
/// of rank a from row 10 b + j.
void check_all_to_all(Communicator& world, MemorySpace space, DType dtype,
                      const std::function<std::int64_t(int, int)>& rows) {
    Splits sent, received;
    Values mine, expected;
    for (int r = 0; r < world.size(); ++r) {
        sent.push_back(rows(world.rank(), r));
        received.push_back(rows(r, world.rank()));
        append(mine, values_of(world.rank(), sent[r], 10 * r));
        append(expected, values_of(r, received[r], 10 * world.rank()));
    }
    const Tensor target = untouched(total(received), dtype, space);
    world.all_to_all(target, tensor_of(mine, dtype, space), received, sent);
    expect_values(target, expected, "all_to_all");
}

void all_to_all(Communicator& world, MemorySpace space) {
    const int last = world.size() - 1;
    for (DType dtype : {DType::f64, DType::bf16, DType::i64}) {
        const auto check = [&](auto&& rows) {
            check_all_to_all(world, space, dtype, rows);
        };
        check([](int from, int to) { return (from * 3 + to * 5 + 1) % 4; });
        check([](int, int) { return 2; });
        check([](int from, int to) { return from == to ? 3 : 0; });
        check([](int from, int to) { return from == to ? 0 : 1; });
        check([&](int, int to) { return to == last ? 4 : 0; });
        check([&](int from, int) { return from == last ? 4 : 0; });
        check([](int, int) { return 0; });
    }
}

/// More than fits into what a transport sends without asking the receiver.
void large_messages(Communicator& world, MemorySpace space) {
    constexpr std::int64_t kRows = 3001;
    Values mine, expected;
    for (int r = 0; r < world.size(); ++r) {
        append(mine, values_of(world.rank(), kRows, r));
        append(expected, values_of(r, kRows, world.rank()));
    }
    const Splits rows(world.size(), kRows);
    const Tensor target = untouched(kRows * world.size(), DType::f64, space);
    world.all_to_all(target, tensor_of(mine, DType::f64, space), rows, rows);
    expect_values(target, expected, "a large all_to_all");
    const Tensor whole = untouched(kRows * world.size(), DType::f64, space);
    world.all_gather(whole, rows_of(target, 0, kRows));
    Values gathered;
    for (int r = 0; r < world.size(); ++r) append(gathered, values_of(0, kRows, r));
    expect_values(whole, gathered, "a large all_gather");
}

}  // namespace

const std::vector<Scenario>& conformance_scenarios() {
    static const std::vector<Scenario> scenarios = {
        {"barrier", barrier},
        {"broadcast", broadcast},
        {"all_gather", all_gather},
        {"reduce_scatter", reduce_scatter},
        {"all_reduce", all_reduce},
        {"ascending_order", ascending_order, true},
        {"same_bits", same_bits},
        {"all_to_all", all_to_all},
        {"large_messages", large_messages},
        {"split", split},
        {"independent_groups", independent_groups},
        {"peer_memory", peer_memory},
        {"ledger", ledger},
    };
    return scenarios;
}

const Scenario& find_scenario(const std::string& name) {
    return find_by_name(conformance_scenarios(), name);
}

}  // namespace moe::test
