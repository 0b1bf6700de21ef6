// rank_group_scenarios.cpp: parts of the ranks, their memory, and the books.

#include <numeric>

#include "tests/ranks/rank_values.h"

namespace moe::test {

using distributed::Communicator;

namespace {

/// The group must be made of these world ranks in this order; proves it by gathering.
void check_group(Communicator& group, const std::vector<int>& members,
                 int my_world_rank) {
    expect(group.members() == members, "group " + group.name() + " to have its members");
    expect(group.world_rank(group.rank()) == my_world_rank, "to be at my own place");
    const Tensor all = Tensor::empty({group.size(), 1}, DType::i64);
    group.all_gather(all, Tensor::from({1, 1}, std::vector<std::int64_t>{my_world_rank}));
    expect_values(all, Values(members.begin(), members.end()), "ranks of a group");
}

}  // namespace

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

}  // namespace moe::test
