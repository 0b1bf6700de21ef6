// The flex dispatcher over ranks that are threads: against what the routing maps of all
// ranks say, worked out without communication, and against the other dispatchers.

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

using distributed::BytesByPeer;
using distributed::Communicator;
using distributed::make_process_groups;
using distributed::ProcessGroupsPtr;
using distributed::run_ranks;
using Values = std::vector<double>;

constexpr std::int64_t H = 5;

/// Ranks, and what each of them routes.
struct Scenario {
    std::string name;
    int ep = 2, etp = 1;
    std::int64_t experts = 6, topk = 2;
    std::vector<std::int64_t> tokens;  ///< of each rank of the world
    enum { anywhere, first_rank, dropped } routing = anywhere;

    int world() const { return int(tokens.size()); }
    int group() const { return ep * etp; }  ///< W'
    std::int64_t num_local() const { return experts / ep; }
    MoEConfig config(const std::string& dispatcher) const {
        MoEConfig config = small_config(H, experts, topk, 4 * etp);
        config.expert_model_parallel_size = ep;
        config.expert_tensor_parallel_size = etp;
        config.moe_token_dispatcher_type = dispatcher;
        config.finalize();
        return config;
    }
};

const std::vector<Scenario> kScenarios = {
    {"two ranks", 2, 1, 6, 2, {7, 7}},
    {"uneven, K > L", 4, 1, 8, 5, {9, 0, 1, 4}},
    {"all to one rank", 4, 1, 16, 3, {5, 3, 0, 8}, Scenario::first_rank},
    {"nobody has a token", 2, 1, 4, 2, {0, 0}},
    {"eight ranks, every expert", 8, 1, 8, 8, {3, 3, 3, 3, 3, 3, 3, 3}},
    {"shards alone", 1, 2, 3, 2, {6, 2}},
    {"shards and ranks", 2, 2, 6, 3, {4, 4, 4, 4}},
    {"two groups, uneven", 2, 2, 4, 2, {5, 1, 0, 3, 2, 6, 4, 0}},
    {"capacity", 2, 2, 6, 3, {8, 8, 8, 8}, Scenario::dropped},
};

/// What one rank brings, on the host: hidden states and gradients are small integers,
/// probabilities quarters (0 among them), so that every sum is exact in bf16.
struct Inputs {
    Tensor hidden, probs, map, doutput;
};

Inputs inputs_of(const Scenario& s, int rank, bool exact = true) {
    const std::int64_t T = s.tokens[rank], E = s.experts;
    const Rng rng(100 + rank);
    Inputs in{random_tensor({T, H}, 1 + rank), random_tensor({T, E}, 20 + rank, 0.3),
              Tensor::zeros({T, E}, DType::u8), random_tensor({T, H}, 40 + rank)};
    if (exact) {
        for (std::int64_t i = 0; i < T * H; ++i) {
            in.hidden.data<float>()[i] = float(rng.below(i, 5)) - 2.0f;
            in.doutput.data<float>()[i] = float(rng.below(i + 10000, 5)) - 2.0f;
        }
        for (std::int64_t i = 0; i < T * E; ++i)
            in.probs.data<float>()[i] = float(rng.below(i + 20000, 5)) / 4.0f;
    }
    const std::int64_t choices =
        s.routing == Scenario::first_rank ? s.num_local() : s.experts;
    for (std::int64_t t = 0; t < T; ++t) {
        std::vector<std::int64_t> order(choices);
        std::iota(order.begin(), order.end(), 0);
        for (std::int64_t k = 0; k < s.topk; ++k) {
            std::swap(order[k], order[k + rng.below(30000 + t * E + k, choices - k)]);
            const bool stays =
                s.routing != Scenario::dropped || rng.below(40000 + t * E + k, 3) != 0;
            in.map.data<std::uint8_t>()[t * E + order[k]] = stays;
        }
    }
    for (std::int64_t i = 0; i < T * E; ++i)
        if (!in.map.data<std::uint8_t>()[i]) in.probs.data<float>()[i] = 0.0f;
    return in;
}

/// An expert that is a factor, another one on every shard: y = p f x.
double factor(std::int64_t expert, int shard) {
    return std::array{1.0, -1.0, 2.0, -2.0}[(expert + 3 * shard) % 4];
}

/// One rank's way through the layer without router and real experts.
struct Passage {
    TensorMap values;  // as shown
    Tensor rows, row_probs, tokens_per_expert, output, drows, dhidden, dprobs;
    std::map<std::string, BytesByPeer> sent;
};

Tensor cast(const Values& values, const Shape& shape, const Placement& placement) {
    return transfer(Tensor::from<double>(shape, values), placement);
}

struct ForwardPassage {
    Passage passage;
    SavedPtr saved;
};

ForwardPassage forward(TokenDispatcher& dispatcher, const Scenario& s, const Inputs& in,
                       const ProcessGroupsPtr& groups) {
    const Placement at = dispatcher.placement();
    ValueRecorder recorder;
    const RunContext context{.observer = &recorder};
    auto sent = dispatcher.dispatch(transfer(in.hidden, at),
                                    transfer(in.probs, probs_placement(at)),
                                    transfer(in.map, at), context);
    const Values counts = to_doubles(sent.tokens_per_expert);
    // A tier may have room for more of them.
    const auto N = std::int64_t(std::accumulate(counts.begin(), counts.end(), 0.0));
    const Tensor rows = sent.rows.plain().first(N), row_probs = sent.row_probs.first(N);
    Values y = to_doubles(rows);
    const Values p = to_doubles(row_probs);
    std::size_t r = 0;
    for (std::int64_t l = 0; l < s.num_local(); ++l)
        for (double n = 0; n < counts[l]; ++n, ++r)
            for (std::int64_t j = 0; j < H; ++j)
                y[r * H + j] *= p[r] * factor(groups->ep->rank() * s.num_local() + l,
                                              groups->expt_tp->rank());
    ForwardPassage result;
    result.passage = {{}, rows, row_probs, sent.tokens_per_expert, {}, {}, {}, {}, {}};
    result.passage.output =
        dispatcher.combine(cast(y, rows.shape(), at), {}, *sent.saved, context);
    result.passage.values = recorder.values;
    result.saved = std::move(sent.saved);
    return result;
}

void backward(ForwardPassage& forward, TokenDispatcher& dispatcher, const Scenario& s,
              const Inputs& in, const ProcessGroupsPtr& groups) {
    Passage& result = forward.passage;
    const Placement at = dispatcher.placement();
    result.drows =
        dispatcher.combine_backward(transfer(in.doutput, at), *forward.saved, {})
            .plain()
            .first(result.rows.dim(0));
    const Values x = to_doubles(result.rows), p = to_doubles(result.row_probs),
                 counts = to_doubles(result.tokens_per_expert);
    Values dx = to_doubles(result.drows), dp(p.size());
    std::size_t r = 0;
    for (std::int64_t l = 0; l < s.num_local(); ++l) {
        const double f =
            factor(groups->ep->rank() * s.num_local() + l, groups->expt_tp->rank());
        for (double n = 0; n < counts[l]; ++n, ++r)
            for (std::int64_t j = 0; j < H; ++j) {
                dp[r] += f * x[r * H + j] * dx[r * H + j];
                dx[r * H + j] *= p[r] * f;
            }
    }
    auto gradients = dispatcher.dispatch_backward(
        cast(dx, result.rows.shape(), at),
        cast(dp, {std::int64_t(dp.size())}, probs_placement(at)), *forward.saved, {});
    result.dhidden = gradients.dhidden;
    result.dprobs = gradients.dprobs;
}

std::unique_ptr<TokenDispatcher> make(const ComponentSpec& supplier,
                                      const MoEConfig& config,
                                      const ProcessGroupsPtr& groups) {
    return find_tier("tier", supplier.tier)
        .make_dispatcher(config, supplier.dtype, groups);
}

/// All ranks, once forward and once backward. @return by world rank
std::vector<Passage> run(const ComponentSpec& supplier, const Scenario& s,
                         const std::string& type, bool exact = true) {
    std::vector<Passage> passages(s.world());
    run_ranks(s.world(), [&](Communicator& world) {
        const MoEConfig config = s.config(type);
        const ProcessGroupsPtr groups = make_process_groups(world, config);
        const auto dispatcher = make(supplier, config, groups);
        const Inputs in = inputs_of(s, world.rank(), exact);
        world.ledger().reset_sent();
        auto there = forward(*dispatcher, s, in, groups);
        backward(there, *dispatcher, s, in, groups);
        there.passage.sent = world.ledger().sent();
        passages[world.rank()] = std::move(there.passage);
    });
    return passages;
}

// ---------------------------------------------------------- what has to come out, from
// the maps of all ranks

/// Sum over the token's experts and their shards of `term(expert, shard)`.
template <typename Term>
double sum_choices(const Scenario& s, const Inputs& in, std::int64_t t, Term&& term) {
    double sum = 0.0;
    for (std::int64_t e = 0; e < s.experts; ++e)
        for (int shard = 0; shard < s.etp; ++shard)
            if (in.map.data<std::uint8_t>()[t * s.experts + e]) sum += term(e, shard);
    return sum;
}

void expect_outputs(const Scenario& s, const Inputs& in, const Passage& got) {
    const Values x = to_doubles(in.hidden), p = to_doubles(in.probs),
                 dy = to_doubles(in.doutput);
    const std::int64_t T = in.hidden.dim(0), E = s.experts;
    Values output(T * H), dhidden(T * H), dprobs(T * E);
    for (std::int64_t t = 0; t < T; ++t) {
        const double weight = sum_choices(s, in, t, [&](std::int64_t e, int shard) {
            return p[t * E + e] * factor(e, shard);
        });
        double product = 0.0;
        for (std::int64_t j = t * H; j < (t + 1) * H; ++j) {
            output[j] = weight * x[j];
            dhidden[j] = weight * dy[j];
            product += x[j] * dy[j];
        }
        for (std::int64_t e = 0; e < E; ++e)
            dprobs[t * E + e] = sum_choices(s, in, t, [&](std::int64_t other, int shard) {
                return other == e ? factor(e, shard) * product : 0.0;
            });
    }
    EXPECT_EQ(to_doubles(got.output), output) << s.name;
    EXPECT_EQ(to_doubles(got.dhidden), dhidden) << s.name;
    EXPECT_EQ(to_doubles(got.dprobs), dprobs) << s.name;
}

/// The ranks of its own group that get a row of the token.
std::set<int> ranks_of(const Scenario& s, const Inputs& in, std::int64_t t) {
    std::set<int> ranks;
    sum_choices(s, in, t, [&](std::int64_t e, int shard) {
        ranks.insert(int(e / s.num_local()) * s.etp + shard);
        return 0.0;
    });
    return ranks;
}

/// What `rank` must receive and hand to its experts.
void expect_rows(const Scenario& s, int rank, const std::vector<Inputs>& all,
                 const Passage& got) {
    const int first = rank / s.group() * s.group(), mine = rank - first;
    Values rows, row_probs, counts, sources, received, input_splits, output_splits;
    for (int source = 0; source < s.group(); ++source) {
        const Inputs& in = all[first + source];
        const Values x = to_doubles(in.hidden);
        double from = 0.0, to = 0.0;
        for (std::int64_t t = 0; t < in.hidden.dim(0); ++t) {
            if (!ranks_of(s, in, t).contains(mine)) continue;
            ++from;
            sources.insert(sources.end(), {double(source), double(t)});
            received.insert(received.end(), &x[t * H], &x[t * H] + H);
        }
        for (std::int64_t t = 0; t < all[rank].hidden.dim(0); ++t)
            to += ranks_of(s, all[rank], t).contains(source);
        output_splits.push_back(from);
        input_splits.push_back(to);
    }
    for (std::int64_t l = 0; l < s.num_local(); ++l) {
        const std::int64_t e = mine / s.etp * s.num_local() + l;
        counts.push_back(0);
        for (int source = 0; source < s.group(); ++source) {
            const Inputs& in = all[first + source];
            const Values x = to_doubles(in.hidden), p = to_doubles(in.probs);
            for (std::int64_t t = 0; t < in.hidden.dim(0); ++t) {
                if (!in.map.data<std::uint8_t>()[t * s.experts + e]) continue;
                ++counts.back();
                rows.insert(rows.end(), &x[t * H], &x[t * H] + H);
                row_probs.push_back(p[t * s.experts + e]);
            }
        }
    }
    EXPECT_EQ(to_doubles(got.values.at("input_splits")), input_splits) << s.name;
    EXPECT_EQ(to_doubles(got.values.at("output_splits")), output_splits) << s.name;
    EXPECT_EQ(to_doubles(got.values.at("received_sources")), sources) << s.name;
    EXPECT_EQ(to_doubles(got.values.at("received_hidden_states")), received) << s.name;
    EXPECT_EQ(to_doubles(got.rows), rows) << s.name;
    EXPECT_EQ(to_doubles(got.row_probs), row_probs) << s.name;
    EXPECT_EQ(to_doubles(got.tokens_per_expert), counts) << s.name;
}

/// Rows, and so bytes, to other ranks: one for each pair of a token and a rank.
void expect_books(const Scenario& s, int rank, const std::vector<Inputs>& all,
                  const Passage& got, const ComponentSpec& supplier) {
    const int first = rank / s.group() * s.group(), mine = rank - first;
    const std::int64_t row = H * std::int64_t(size_of(supplier.dtype));
    const std::int64_t slots = s.etp * s.topk;
    const auto prob = std::int64_t(std::max(size_of(supplier.dtype), sizeof(float)));
    std::map<std::string, BytesByPeer> expected;
    for (int peer = 0; peer < s.group(); ++peer) {
        if (peer == mine) continue;
        std::int64_t pushed = 0, pulled = 0;
        for (std::int64_t t = 0; t < all[rank].hidden.dim(0); ++t)
            pushed += ranks_of(s, all[rank], t).contains(peer);
        for (std::int64_t t = 0; t < all[first + peer].hidden.dim(0); ++t)
            pulled += ranks_of(s, all[first + peer], t).contains(mine);
        const int to = first + peer;
        if (pushed > 0) {
            expected["flex_dispatch"][to] = pushed * (row + slots * (4 + prob) + 8);
            expected["flex_combine_backward"][to] = pushed * row;
        }
        if (pulled > 0) {
            expected["flex_combine"][to] = pulled * row;
            expected["flex_dispatch_backward"][to] = pulled * (row + slots * prob);
        }
        // The counts for all ranks, or how many tokens there are
        expected["all_gather"][to] = supplier.tier == "optimized_gpu" ? 8 : 8 * s.group();
    }
    EXPECT_EQ(got.sent, expected) << s.name;
}

class FlexDispatcherTest : public testing::TestWithParam<ComponentSpec> {};

TEST_P(FlexDispatcherTest, SendsOneRowPerTokenAndRank) {
    for (const Scenario& s : kScenarios) {
        const auto passages = run(GetParam(), s, "flex");
        std::vector<Inputs> all;
        for (int rank = 0; rank < s.world(); ++rank) all.push_back(inputs_of(s, rank));
        for (int rank = 0; rank < s.world(); ++rank) {
            expect_outputs(s, all[rank], passages[rank]);
            expect_rows(s, rank, all, passages[rank]);
            expect_books(s, rank, all, passages[rank], GetParam());
        }
    }
}

TEST_P(FlexDispatcherTest, GivesTheBitsOfAllGather) {
    // Both add up what each rank's experts made of a token, by rank; floats of any kind.
    for (const Scenario& s : kScenarios) {
        if (std::set(s.tokens.begin(), s.tokens.end()).size() > 1) continue;
        const auto flex = run(GetParam(), s, "flex", false);
        const auto other = run(GetParam(), s, "allgather", false);
        for (int rank = 0; rank < s.world(); ++rank) {
            const Passage &a = flex[rank], &b = other[rank];
            EXPECT_TRUE(BitwiseEqual(a.rows, b.rows)) << s.name;
            EXPECT_TRUE(BitwiseEqual(a.row_probs, b.row_probs)) << s.name;
            EXPECT_TRUE(BitwiseEqual(a.output, b.output)) << s.name;
            EXPECT_TRUE(BitwiseEqual(a.drows, b.drows)) << s.name;
            EXPECT_TRUE(BitwiseEqual(a.dhidden, b.dhidden)) << s.name;
            EXPECT_TRUE(BitwiseEqual(a.dprobs, b.dprobs)) << s.name;
        }
    }
}

TEST_P(FlexDispatcherTest, GivesWhatAlltoAllGives) {
    for (const Scenario& s : kScenarios) {
        const auto flex = run(GetParam(), s, "flex");
        const auto other = run(GetParam(), s, "alltoall");
        for (int rank = 0; rank < s.world(); ++rank) {
            EXPECT_TRUE(BitwiseEqual(flex[rank].output, other[rank].output)) << s.name;
            EXPECT_TRUE(BitwiseEqual(flex[rank].dhidden, other[rank].dhidden)) << s.name;
            EXPECT_TRUE(BitwiseEqual(flex[rank].dprobs, other[rank].dprobs)) << s.name;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, FlexDispatcherTest,
                         testing::ValuesIn(with_dispatcher(available_suppliers(),
                                                           "flex")),
                         instance_name);

}  // namespace
}  // namespace moe::test
