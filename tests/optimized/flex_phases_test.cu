// flex_phases_test.cu: one rank's part of a flex dispatch, with all heaps at hand, by
// plain loops.

#include "optimized_gpu/flex_phases.h"

#include "tests/optimized/permutation_support.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using optimized::ExpertGrid;
using optimized::PeerSlots;
using Floats = std::vector<float>;

/// T tokens of K choices among E experts, on EP ETP ranks; this rank is the second.
struct FlexCase {
    int T, K, E, EP, ETP, H;
    DType dtype = DType::bf16;

    std::string text() const {
        return fmt::format("T={} K={} E={} EP={} ETP={} H={} {}", T, K, E, EP, ETP, H,
                           to_string(dtype));
    }
    ExpertGrid grid() const { return {EP * ETP, ETP, E / EP}; }
};
constexpr int kRank = 1;

/// A row of mine: whose, and to which rank.
struct SentRow {
    int token, rank, place;  // in the rank's heap
};

/// A section of every heap, filled with `poison` where nobody wrote.
template <typename E>
struct Heaps {
    std::vector<Tensor> of;
    PeerSlots<E> peers;

    /// @param rows  of a heap @param first_slot  of my region
    Heaps(int num_ranks, int rows, std::int64_t width, std::int64_t first_slot, E poison)
        : width_(width) {
        for (int w = 0; w < num_ranks; ++w) {
            of.push_back(gpu::device_empty<E>({rows, width}));
            const std::vector<E> poisoned(rows * width, poison);
            set(w, poisoned);
            peers.of[w] = gpu::device_data<E>(of.back());
        }
        peers.width = width;
        peers.first_slot = first_slot;
    }
    void set(int rank, const std::vector<E>& values) {
        gpu::check(cudaMemcpy(gpu::device_data<E>(of[rank]), values.data(),
                              values.size() * sizeof(E), cudaMemcpyHostToDevice),
                   "cudaMemcpy");
    }
    std::vector<E> row(int rank, int place) const {
        const std::vector<E> all = host<E>(of[rank]);
        return {all.begin() + place * width_, all.begin() + (place + 1) * width_};
    }

  private:
    std::int64_t width_;
};

using Bytes = std::vector<std::uint8_t>;

PeerSlots<std::byte> as_bytes(const PeerSlots<std::uint8_t>& peers) {
    PeerSlots<std::byte> bytes;
    bytes.width = peers.width;
    bytes.first_slot = peers.first_slot;
    for (int w = 0; w < distributed::kMaxPeers; ++w)
        bytes.of[w] = reinterpret_cast<std::byte*>(peers.of[w]);
    return bytes;
}

/// The whole of a case, by plain loops.
class FlexPhases {
  public:
    explicit FlexPhases(const FlexCase& c) : c_(c), grid_(c.grid()) {
        ids_ = ids_of({c.T, c.E, c.K, 1});
        for (int w = 0; w < num_ranks(); ++w) {
            int slot = kRank * per_source();
            for (int t = 0; t < c.T; ++t)
                if (goes(t, w)) rows_.push_back({t, w, slot++});
        }
        device_ids_ = on_device(ids_, {c.T, c.K});
        sent_ = optimized::make_rank_map(device_ids_, grid_);
    }

    void check_map() const {
        Ints row_slot;
        for (const SentRow& row : rows_)
            row_slot.push_back(row.token * c_.EP * c_.ETP + row.rank);
        EXPECT_EQ(host<int>(sent_.row_slot, row_slot.size()), row_slot);
        EXPECT_EQ(host<int>(sent_.offsets).back(), int(row_slot.size()));
    }

    void check_push() const {
        const Floats values = weights_of(std::int64_t(c_.T) * c_.H);
        const Tensor source = on_device(values, {c_.T, c_.H}, c_.dtype);
        const std::int64_t bytes = c_.H * std::int64_t(size_of(c_.dtype));
        const auto heaps = heaps_of<std::uint8_t>(bytes, 0xA5);
        optimized::push_rows(as_bytes(heaps.peers), source, sent_);
        const Bytes pushed = bytes_of(source);
        for (const SentRow& row : rows_)
            EXPECT_EQ(heaps.row(row.rank, row.place),
                      (Bytes{pushed.begin() + row.token * bytes,
                             pushed.begin() + (row.token + 1) * bytes}))
                << row.token << " to " << row.rank;
        expect_untouched(heaps, 0xA5);
    }

    void check_choices() const {
        const int slots = c_.K * c_.ETP;
        const Floats probs = weights_of(c_.T * c_.K);
        const std::int64_t bytes = c_.H * std::int64_t(size_of(c_.dtype));
        const Tensor source =
            on_device(weights_of(std::int64_t(c_.T) * c_.H), {c_.T, c_.H}, c_.dtype);
        const auto tokens = heaps_of<std::uint8_t>(bytes, 0xA5),
                   alone = heaps_of<std::uint8_t>(bytes, 0xA5);
        const auto ids = heaps_of<std::int32_t>(slots, -7),
                   sources = heaps_of<std::int32_t>(2, -7);
        auto weights = heaps_of<float>(slots, -7.0f);
        const Heaps<std::int32_t> counts(num_ranks(), num_ranks(), 1, 0, -7);
        optimized::push_tokens(as_bytes(tokens.peers),
                               {ids.peers, sources.peers, weights.peers, counts.peers},
                               source, device_ids_, on_device(probs, {c_.T, c_.K}), sent_,
                               grid_, kRank);
        optimized::push_rows(as_bytes(alone.peers), source, sent_);
        for (int w = 0; w < num_ranks(); ++w) {
            EXPECT_EQ(host<std::uint8_t>(tokens.of[w]), host<std::uint8_t>(alone.of[w]));
            Ints expected_counts(num_ranks(), -7);
            expected_counts[kRank] =
                int(std::count_if(rows_.begin(), rows_.end(),
                                  [w](const SentRow& row) { return row.rank == w; }));
            EXPECT_EQ(host<int>(counts.of[w]), expected_counts);
        }
        for (const SentRow& row : rows_) {
            Ints expected_ids(slots, -1);
            Floats expected(slots, 0.0f);
            for (int k = 0; k < c_.K; ++k) {
                const int e = ids_[row.token * c_.K + k], L = c_.E / c_.EP;
                for (int s = 0; s < c_.ETP; ++s) {
                    if (e < 0 || e / L * c_.ETP + s != row.rank) continue;
                    expected_ids[k * c_.ETP + s] = e % L;
                    expected[k * c_.ETP + s] = probs[row.token * c_.K + k];
                }
            }
            EXPECT_EQ(ids.row(row.rank, row.place), expected_ids);
            EXPECT_EQ(weights.row(row.rank, row.place), expected);
            EXPECT_EQ(sources.row(row.rank, row.place), (Ints{kRank, row.token}));
        }
        expect_untouched(ids, -7);
        expect_untouched(sources, -7);
        expect_untouched(weights, -7.0f);
        check_gradients(weights);
    }

    void check_pull(bool with_addend) const {
        const std::int64_t bytes = c_.H * std::int64_t(size_of(c_.dtype));
        auto heaps = heaps_of<std::uint8_t>(bytes, 0xFF);  // NaN
        std::vector<Floats> all;
        for (int w = 0; w < num_ranks(); ++w) {
            Floats values(heap_rows() * c_.H, NAN);
            for (const SentRow& row : rows_)
                for (int h = 0; row.rank == w && h < c_.H; ++h)
                    values[row.place * c_.H + h] =
                        float((row.token * 31 + h * 7 + row.rank * 11) % 63) / 8;
            heaps.set(w, bytes_of(on_device(values, {heap_rows(), c_.H}, c_.dtype)));
            all.push_back(values);
        }
        Floats expected(c_.T * c_.H), added(expected.size());
        for (std::size_t i = 0; i < added.size(); ++i)
            added[i] = with_addend ? float(i % 5) : 0.0f;
        for (const SentRow& row : rows_)
            for (int h = 0; h < c_.H; ++h)
                expected[row.token * c_.H + h] += all[row.rank][row.place * c_.H + h];
        for (std::size_t i = 0; i < added.size(); ++i) expected[i] += added[i];
        const Tensor got = optimized::pull_rows(
            as_bytes(heaps.peers), c_.dtype, sent_,
            with_addend ? on_device(added, {c_.T, c_.H}, c_.dtype) : Tensor());
        EXPECT_EQ(bytes_of(got), bytes_of(on_device(expected, {c_.T, c_.H}, c_.dtype)));
    }

  private:
    bool goes(int t, int rank) const {
        for (int k = 0; k < c_.K; ++k) {
            const int e = ids_[t * c_.K + k];
            if (e >= 0 && e / (c_.E / c_.EP) == rank / c_.ETP) return true;
        }
        return false;
    }
    int num_ranks() const { return c_.EP * c_.ETP; }
    /// Another rank may have more tokens.
    int per_source() const { return c_.T + 2; }
    int heap_rows() const { return num_ranks() * per_source(); }
    template <typename E>
    Heaps<E> heaps_of(std::int64_t width, std::type_identity_t<E> poison) const {
        return {num_ranks(), heap_rows(), width, kRank * per_source(), poison};
    }
    static Bytes bytes_of(const Tensor& tensor) {
        const Tensor copy = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        const auto* bytes = static_cast<const std::uint8_t*>(copy.view().bytes);
        return {bytes, bytes + copy.size_bytes()};
    }
    template <typename E>
    void expect_untouched(const Heaps<E>& heaps, std::type_identity_t<E> poison) const {
        for (int w = 0; w < num_ranks(); ++w)
            for (int place = 0; place < heap_rows(); ++place) {
                const bool mine =
                    std::any_of(rows_.begin(), rows_.end(), [&](const SentRow& row) {
                        return row.rank == w && row.place == place;
                    });
                if (mine) continue;
                for (const E value : heaps.row(w, place))
                    ASSERT_EQ(value, poison) << "rank " << w << ", row " << place;
            }
    }
    /// Each slot's gradient is of its own size, and those of other ranks' choices NaN.
    void check_gradients(Heaps<float>& heaps) const {
        const int slots = c_.K * c_.ETP, L = c_.E / c_.EP;
        std::vector<Floats> values(num_ranks(), Floats(heap_rows() * slots, NAN));
        Floats expected(c_.T * c_.K);
        for (const SentRow& row : rows_)
            for (int slot = 0; slot < slots; ++slot) {
                const int choice = row.token * c_.K + slot / c_.ETP, e = ids_[choice];
                if (e < 0 || e / L * c_.ETP + slot % c_.ETP != row.rank) continue;
                const float value = float(choice) + 0.25f * float(slot % c_.ETP);
                values[row.rank][row.place * slots + slot] = value;
                expected[choice] += value;
            }
        for (std::size_t w = 0; w < values.size(); ++w) heaps.set(int(w), values[w]);
        EXPECT_EQ(host<float>(optimized::pull_prob_gradients(heaps.peers, device_ids_,
                                                             sent_, grid_)),
                  expected);
    }

    FlexCase c_;
    ExpertGrid grid_;
    Ints ids_;
    std::vector<SentRow> rows_;
    Tensor device_ids_;
    RowMap sent_;
};

/// A heap of mine in which only the first `counts` slots of each region are filled.
void check_take(int H, DType dtype, const Ints& counts, int per_source) {
    SCOPED_TRACE(fmt::format("H={} {}", H, to_string(dtype)));
    MoEConfig config = small_config(H, 6, 3);
    config.finalize();
    const int W = int(counts.size()), slots = W * per_source;
    const auto at = optimized::make_flex_slots(W, per_source, config, dtype);
    const Tensor heap =
        Tensor::zeros({std::int64_t(at.bytes)}, DType::u8, MemorySpace::device);
    distributed::PeerTable table{W - 1, W, {}};
    table.base[W - 1] = static_cast<std::byte*>(heap.view().bytes);
    const auto own = [&](const distributed::HeapSection& section, int rows) {
        return optimized::own_slots(section, rows, table);
    };
    const Tensor tokens =
        on_device(weights_of(std::int64_t(slots) * H), {slots, H}, dtype);
    Ints ids(slots * 3);
    for (int i = 0; i < slots * 3; ++i) ids[i] = i % 5 - 1;
    const Floats probs = weights_of(slots * 3);
    copy(own(at.tokens, slots), tokens);
    copy(own(at.topk_ids, slots), on_device(ids, {slots, 3}));
    copy(own(at.topk_probs, slots), on_device(probs, {slots, 3}));
    copy(own(at.counts, W), on_device(counts, {W, 1}));

    const auto taken = optimized::take_tokens(at, table, true);
    EXPECT_EQ(host<int>(taken.counts), counts);
    EXPECT_FALSE(optimized::take_tokens(at, table, false).rows.defined());
    const Ints got_ids = host<int>(taken.topk_ids);
    const Floats got_probs = host<float>(taken.topk_probs);
    const Tensor rows = transfer(taken.rows, {MemorySpace::host, dtype}),
                 expected = transfer(tokens, {MemorySpace::host, dtype});
    const std::size_t bytes = H * size_of(dtype);
    for (int slot = 0; slot < slots; ++slot) {
        const bool filled = slot % per_source < counts[slot / per_source];
        for (int k = 0; k < 3; ++k) {
            const int i = slot * 3 + k;
            EXPECT_EQ(got_ids[i], filled ? ids[i] : -1) << slot;
            if (filled && ids[i] >= 0) {
                EXPECT_EQ(got_probs[i], probs[i]) << slot;
            }
        }
        const auto row_of = [&](const Tensor& all) {
            const auto* row = static_cast<const char*>(all.view().bytes) + slot * bytes;
            return std::string(row, bytes);
        };
        EXPECT_EQ(row_of(rows) == row_of(expected), filled) << slot;
    }
}

const std::vector<FlexCase>& flex_cases() {
    static const std::vector<FlexCase> all = {
        {.T = 37, .K = 3, .E = 12, .EP = 4, .ETP = 1, .H = 40},
        {.T = 9, .K = 5, .E = 12, .EP = 3, .ETP = 2, .H = 6},
        {.T = 5, .K = 1, .E = 2, .EP = 1, .ETP = 2, .H = 1},
        {.T = 11, .K = 4, .E = 9, .EP = 3, .ETP = 1, .H = 1100},
        {.T = 3, .K = 30, .E = 40, .EP = 40, .ETP = 1, .H = 5, .dtype = DType::f32},
        {.T = 7, .K = 2, .E = 6, .EP = 2, .ETP = 3, .H = 12, .dtype = DType::f32},
        {.T = 2, .K = 32, .E = 32, .EP = 32, .ETP = 2, .H = 8},
        {.T = 3, .K = 1, .E = 3, .EP = 3, .ETP = 1, .H = 8},
        {.T = 0, .K = 2, .E = 4, .EP = 2, .ETP = 1, .H = 8},
    };
    return all;
}

void with_phases(const std::function<void(const FlexPhases&)>& body) {
    gpu::register_device_memory();
    for (const FlexCase& c : flex_cases()) {
        SCOPED_TRACE(c.text());
        body(FlexPhases(c));
    }
}

TEST(OptimizedFlexPhases, SendARowToEveryRankOfAToken) {
    NEEDS_DEVICE();
    with_phases([](const FlexPhases& phases) { phases.check_map(); });
}

TEST(OptimizedFlexPhases, PushRowsWhereTheirRankWantsThem) {
    NEEDS_DEVICE();
    with_phases([](const FlexPhases& phases) { phases.check_push(); });
}

TEST(OptimizedFlexPhases, PushChoicesAndPullTheirGradients) {
    NEEDS_DEVICE();
    with_phases([](const FlexPhases& phases) { phases.check_choices(); });
}

TEST(OptimizedFlexPhases, TakeWhatIsThere) {
    NEEDS_DEVICE();
    gpu::register_device_memory();
    for (const auto& [H, dtype] : {std::pair(40, DType::bf16),
                                   {7, DType::bf16},
                                   {1100, DType::f32},
                                   {6, DType::bf16}})
        check_take(H, dtype, {0, 5, 2}, 5);
    check_take(8, DType::bf16, {0, 0}, 0);
}

TEST(OptimizedFlexPhases, PullSumsByRank) {
    NEEDS_DEVICE();
    with_phases([](const FlexPhases& phases) {
        phases.check_pull(false);
        phases.check_pull(true);
    });
}

}  // namespace
}  // namespace moe::test
