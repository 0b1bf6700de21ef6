#include "tests/ranks/rank_scenarios.h"

#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "core/transfer.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::rows_of;
using distributed::Splits;
using Values = std::vector<double>;

constexpr DType kSummable[] = {DType::f64, DType::f32, DType::bf16, DType::i64,
                               DType::i32};
constexpr std::int64_t kWidth = 5;  // elements of a row

// ------------------------------------------------------------------------- checks
void expect(bool good, const std::string& what) {
    if (!good) throw std::runtime_error("expected " + what);
}

void expect_values(const TensorView& got, const Values& expected,
                   const std::string& what) {
    const Values values = to_doubles(got);
    expect(values.size() == expected.size(), what + ": other number of elements");
    for (std::size_t i = 0; i < values.size(); ++i)
        expect(values[i] == expected[i], fmt::format("{}: element {} is {}, not {}", what,
                                                     i, values[i], expected[i]));
}

// ------------------------------------------------------------------------- values
/// Element i of what `rank` brings: exact in every dtype, as are sums over eight ranks in
/// all but bf16.
double value(int rank, std::int64_t i) {
    return double((rank * 37 + i * 11) % 64 - 20);
}

Tensor tensor_of(const Values& values, DType dtype, MemorySpace space,
                 std::int64_t width = kWidth) {
    const Shape shape = {std::int64_t(values.size()) / width, width};
    const auto as = [&](auto zero) {
        return transfer(Tensor::from(shape, std::vector<decltype(zero)>(values.begin(),
                                                                        values.end())),
                        {space, dtype});
    };
    if (dtype == DType::i64) return as(std::int64_t{});
    if (dtype == DType::i32) return as(std::int32_t{});
    return as(double{});
}

/// Rows [first, first + rows) of what `rank` brings.
Values values_of(int rank, std::int64_t rows, std::int64_t first = 0) {
    Values values;
    for (std::int64_t i = first * kWidth; i < (first + rows) * kWidth; ++i)
        values.push_back(value(rank, i));
    return values;
}

/// The values as the dtype holds them.
Values rounded(const Values& values, DType dtype) {
    return to_doubles(tensor_of(values, dtype, MemorySpace::host));
}

/// Memory that holds what no collective leaves.
Tensor untouched(std::int64_t rows, DType dtype, MemorySpace space) {
    return tensor_of(Values(rows * kWidth, 99.0), dtype, space);
}

void append(Values& target, const Values& more) {
    target.insert(target.end(), more.begin(), more.end());
}

std::int64_t total(const Splits& rows) {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

/// Rows by rank that an uneven collective has to master.
std::vector<Splits> interesting_splits(int size) {
    std::vector<Splits> all;
    Splits uneven(size), one_empty(size, 2), only_last(size, 0);
    for (int r = 0; r < size; ++r) uneven[r] = (r * 5 + 2) % 7;
    one_empty[size / 2] = 0;
    only_last[size - 1] = 3;
    return {uneven, one_empty, only_last, Splits(size, 0), Splits(size, 3)};
}

// ------------------------------------------------------------------- collectives
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
    constexpr std::int64_t kCount = 60;
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

// ------------------------------------------------------------------------- groups
/// The group must be made of these world ranks in this order; proves it by gathering.
void check_group(Communicator& group, const std::vector<int>& members,
                 int my_world_rank) {
    expect(group.members() == members, "group " + group.name() + " to have its members");
    expect(group.world_rank(group.rank()) == my_world_rank, "to be at my own place");
    const Tensor all = Tensor::empty({group.size(), 1}, DType::i64);
    group.all_gather(all, Tensor::from({1, 1}, std::vector<std::int64_t>{my_world_rank}));
    expect_values(all, Values(members.begin(), members.end()), "ranks of a group");
}

void split(Communicator& world, MemorySpace) {
    const int W = world.size(), me = world.rank();
    std::vector<int> everybody(W), alike;
    std::iota(everybody.begin(), everybody.end(), 0);
    for (int r = me % 2; r < W; r += 2) alike.push_back(r);

    const auto by_parity = world.split("parity", me % 2, me);
    expect(by_parity->name() == "parity", "the name that was given");
    expect(&by_parity->ledger() == &world.ledger(), "one ledger for all groups");
    check_group(*by_parity, alike, me);

    const auto backwards = world.split("backwards", 7, -me);
    check_group(*backwards, {everybody.rbegin(), everybody.rend()}, me);

    // Equal keys keep the order of the group that is split: here, backwards.
    const auto tied = backwards->split("tied", 0, 1);
    check_group(*tied, {everybody.rbegin(), everybody.rend()}, me);

    // A part of a part, and groups of one.
    const auto nested =
        by_parity->split("nested", by_parity->rank() / 2, -by_parity->rank());
    const int first = by_parity->rank() / 2 * 2;
    std::vector<int> pair(alike.begin() + first,
                          alike.begin() + std::min<std::size_t>(first + 2, alike.size()));
    check_group(*nested, {pair.rbegin(), pair.rend()}, me);
    check_group(*world.split("alone", me, 0), {me}, me);
}

/// Groups do not wait for each other.
void independent_groups(Communicator& world, MemorySpace space) {
    const auto group = world.split("parity", world.rank() % 2, world.rank());
    for (int i = 0; i < 3 + 4 * (world.rank() % 2); ++i) {
        const Tensor data = tensor_of(values_of(world.rank(), 1), DType::f64, space);
        group->all_reduce(data);
        Values expected(kWidth, 0.0);
        for (int member : group->members())
            for (std::int64_t c = 0; c < kWidth; ++c) expected[c] += value(member, c);
        expect_values(data, expected, "all_reduce in a group");
    }
    world.barrier();
}

// -------------------------------------------------------------------- peer memory
void peer_memory(Communicator& world, MemorySpace space) {
    const int W = world.size(), me = world.rank();
    const auto heap = world.peer_memory(W * 8 + 3, space);
    const auto& table = heap->table();
    expect(table.rank == me && table.size == W, "a table of the group");
    expect(heap->bytes() == std::size_t(W) * 8 + 3 && heap->space() == space,
           "memory as asked for");
    const auto slot = [&](int owner, int index) {
        return TensorView{table.base[owner] + 8 * index, DType::f64, {1}, space};
    };
    for (int writer = 0; writer < W; ++writer)
        expect(to_doubles(slot(me, writer))[0] == 0.0, "zeroed memory");
    world.barrier();
    // Everybody writes into everybody's heap, then reads its own, then the others'.
    for (int round = 0; round < 2; ++round) {
        for (int owner = 0; owner < W; ++owner)
            copy(slot(owner, me),
                 transfer(Tensor::from({1}, Values{value(me, owner) + round}),
                          {space, DType::f64}));
        world.barrier();
        for (int owner = 0; owner < W; ++owner)
            for (int writer = 0; writer < W; ++writer)
                expect(to_doubles(slot(owner, writer))[0] == value(writer, owner) + round,
                       fmt::format("what rank {} wrote to rank {}", writer, owner));
        world.barrier();
    }
    // Two heaps do not meet, and one of a part of the ranks has its own order.
    const auto second = world.peer_memory(8, space);
    expect(second->table().base[me] != table.base[me], "a heap of its own");
    const auto group = world.split("backwards", me / 2, -me);
    const auto small = group->peer_memory(8, space);
    const int next = (group->rank() + 1) % group->size();
    copy(TensorView{small->table().base[next], DType::f64, {1}, space},
         transfer(Tensor::from({1}, Values{double(me)}), {space, DType::f64}));
    group->barrier();
    const int before = (group->rank() + group->size() - 1) % group->size();
    expect_values(TensorView{small->table().base[group->rank()], DType::f64, {1}, space},
                  {double(group->world_rank(before))}, "what the rank before me wrote");
    world.barrier();
}

// ------------------------------------------------------------------------- ledger
void ledger(Communicator& world, MemorySpace space) {
    using distributed::BytesByPeer;
    const int W = world.size(), me = world.rank();
    auto& books = world.ledger();
    const auto sequence = [&] {
        const std::int64_t number = books.begin("probe", "none", 0).sequence;
        books.end();
        return number;
    };
    books.reset_sent();
    const std::int64_t start = sequence();
    const std::int64_t row = kWidth * 8;
    const Splits rows = interesting_splits(W)[0];
    const Tensor whole = tensor_of(values_of(me, total(rows)), DType::f64, space);
    const Tensor part = untouched(rows[me], DType::f64, space);
    world.reduce_scatter(part, whole, rows);
    world.all_gather(whole, part, rows);
    world.all_reduce(whole);
    world.broadcast(whole, W - 1);
    world.barrier();
    Splits sent, received;
    for (int r = 0; r < W; ++r) {
        sent.push_back((me + r) % 2);
        received.push_back((me + r) % 2);
    }
    world.all_to_all(untouched(total(received), DType::f64, space),
                     tensor_of(values_of(me, total(sent)), DType::f64, space), received,
                     sent);
    // A group of one needs no operation; peer memory is one even then.
    expect(sequence() == start + (W > 1 ? 7 : 1), "one number for each operation");
    expect(!books.running(), "no operation to run any more");

    std::map<std::string, BytesByPeer> expected;
    for (int r = 0; r < W; ++r) {
        if (r == me) continue;
        expected["reduce_scatter"][r] = rows[r] * row;
        expected["all_gather"][r] = rows[me] * row;
        expected["all_reduce"][r] = total(rows) * row;
        if (me == W - 1) expected["broadcast"][r] = total(rows) * row;
        if (sent[r] > 0) expected["all_to_all"][r] = sent[r] * row;
    }
    expect(books.sent() == expected, "the bytes that were sent in the books");
    // A part books by world rank.
    books.reset_sent();
    expect(books.sent().empty(), "empty books after a reset");
    const auto group = world.split("backwards", 0, -me);
    group->all_reduce(tensor_of(values_of(me, 1), DType::f64, space));
    expect(books.sent()["all_reduce"].count(me) == 0, "nothing sent to oneself");
    expect(int(books.sent()["all_reduce"].size()) == W - 1, "all others in the books");
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
