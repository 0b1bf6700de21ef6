// flex_phases_test.cu: one rank's part of a flex dispatch, with all heaps at hand, by
// plain loops.

#include "optimized_gpu/flex_phases.h"

#include "tests/optimized/permutation_support.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using optimized::ExpertGrid;
using optimized::PeerRows;
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
    PeerRows<E> peers;

    /// @param shift  of PeerRows
    Heaps(int rows, std::int64_t width, const std::vector<std::int64_t>& shift, E poison)
        : width_(width) {
        for (std::size_t w = 0; w < shift.size(); ++w) {
            of.push_back(gpu::device_empty<E>({rows, width}));
            const std::vector<E> poisoned(rows * width, poison);
            set(int(w), poisoned);
            peers.of[w] = gpu::device_data<E>(of.back());
            peers.shift[w] = shift[w];
        }
        peers.width = width;
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

PeerRows<std::byte> as_bytes(const PeerRows<std::uint8_t>& peers) {
    PeerRows<std::byte> bytes;
    bytes.width = peers.width;
    for (int w = 0; w < distributed::kMaxPeers; ++w) {
        bytes.of[w] = reinterpret_cast<std::byte*>(peers.of[w]);
        bytes.shift[w] = peers.shift[w];
    }
    return bytes;
}

/// The whole of a case, by plain loops.
class FlexPhases {
  public:
    explicit FlexPhases(const FlexCase& c) : c_(c), grid_(c.grid()) {
        ids_ = ids_of({c.T, c.E, c.K, 1});
        const int W = c.EP * c.ETP;
        shift_.resize(W);
        for (int w = 0; w < W; ++w) {
            // Rows of other ranks lie before mine, as many as there are ranks before it.
            const int first = 3 + w, pushed = int(rows_.size());
            shift_[w] = first - pushed;
            for (int t = 0; t < c.T; ++t)
                if (goes(t, w))
                    rows_.push_back({t, w, first + int(rows_.size()) - pushed});
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
        const Heaps<std::uint8_t> heaps(heap_rows(), bytes, shift_, 0xA5);
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
        const Heaps<std::int32_t> ids(heap_rows(), slots, shift_, -7),
            sources(heap_rows(), 2, shift_, -7);
        Heaps<float> weights(heap_rows(), slots, shift_, -7.0f);
        optimized::push_choices({ids.peers, sources.peers, weights.peers}, device_ids_,
                                on_device(probs, {c_.T, c_.K}), sent_, grid_,
                                std::int64_t(rows_.size()), kRank);
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
        Heaps<std::uint8_t> heaps(heap_rows(), bytes, shift_, 0xFF);  // NaN
        std::vector<Floats> all;
        for (std::size_t w = 0; w < shift_.size(); ++w) {
            Floats values(heap_rows() * c_.H, NAN);
            for (const SentRow& row : rows_)
                for (int h = 0; row.rank == int(w) && h < c_.H; ++h)
                    values[row.place * c_.H + h] =
                        float((row.token * 31 + h * 7 + row.rank * 11) % 63) / 8;
            heaps.set(int(w), bytes_of(on_device(values, {heap_rows(), c_.H}, c_.dtype)));
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
    int heap_rows() const { return 3 + c_.EP * c_.ETP + c_.T + 2; }
    static Bytes bytes_of(const Tensor& tensor) {
        const Tensor copy = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        const auto* bytes = static_cast<const std::uint8_t*>(copy.view().bytes);
        return {bytes, bytes + copy.size_bytes()};
    }
    template <typename E>
    void expect_untouched(const Heaps<E>& heaps, std::type_identity_t<E> poison) const {
        for (std::size_t w = 0; w < shift_.size(); ++w)
            for (int place = 0; place < heap_rows(); ++place) {
                const bool mine =
                    std::any_of(rows_.begin(), rows_.end(), [&](const SentRow& row) {
                        return row.rank == int(w) && row.place == place;
                    });
                if (mine) continue;
                for (const E value : heaps.row(int(w), place))
                    ASSERT_EQ(value, poison) << "rank " << w << ", row " << place;
            }
    }
    /// Each slot's gradient is of its own size, and those of other ranks' choices NaN.
    void check_gradients(Heaps<float>& heaps) const {
        const int slots = c_.K * c_.ETP, L = c_.E / c_.EP;
        std::vector<Floats> values(shift_.size(), Floats(heap_rows() * slots, NAN));
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
    std::vector<std::int64_t> shift_;
    Tensor device_ids_;
    RowMap sent_;
};

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

TEST(OptimizedFlexPhases, PullSumsByRank) {
    NEEDS_DEVICE();
    with_phases([](const FlexPhases& phases) {
        phases.check_pull(false);
        phases.check_pull(true);
    });
}

}  // namespace
}  // namespace moe::test
