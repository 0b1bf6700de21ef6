// The layer through its C interface: the same bits as MoELayer's, the caller's own
// memory, and the routing given.

#include <dlfcn.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/places.h"
#include "gpu/stream.h"
#include "tests/bench/moe_c_support.h"
#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

class CInterface : public LayerTest {
  protected:
    /// A layer whose experts alone decide the output.
    static MoEConfig experts_config() { return small_config(kHidden, 5, 2, 6); }

    /// All parameters where the supplier's components want them, router included.
    static TensorMap in_place(const TensorMap& parameters, const Placement& placement) {
        TensorMap moved;
        for (const auto& [name, tensor] : parameters)
            moved[name] = transfer(tensor, placement).clone();
        return moved;
    }
    static void zero(const Tensor& tensor) {
        memory_functions(tensor.space())
            .fill(tensor.view().bytes, 0, tensor.size_bytes());
    }
};

// ----------------------------------------------------------------------------- values

TEST_P(CInterface, GivesTheLayersBits) {
    const MoEConfig config = rich_config();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const LayerRun expected = run(config, parameters, hidden, doutput);

    CLayer subject(config, GetParam());
    subject.set(parameters);
    std::optional<gpu::Stream> stream;
    if (missing_device().empty()) stream.emplace();
    for (const bool given : {false, true}) {
        void* on = given && stream ? static_cast<void*>(stream->get()) : nullptr;
        CForward forward(subject, hidden, on);
        EXPECT_TRUE(BitwiseEqual(forward.output(), expected.output));
        forward.backward(doutput, on);
        EXPECT_TRUE(BitwiseEqual(forward.gradient("hidden_states"),
                                 expected.gradients.hidden_states));
        for (const auto& [name, gradient] : expected.gradients.parameters)
            EXPECT_TRUE(BitwiseEqual(forward.gradient(name), gradient)) << name;
    }
}

TEST_P(CInterface, TakesTokensWithoutASequence) {
    const MoEConfig config = experts_config();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor({7, 1, kHidden}, 1);
    const LayerRun expected = run(config, parameters, hidden, hidden);
    CLayer subject(config, GetParam());
    subject.set(parameters);
    const Tensor flat = hidden.reshaped({7, kHidden});
    CForward forward(subject, flat);
    forward.backward(flat);
    EXPECT_TRUE(BitwiseEqual(forward.output(), expected.output.reshaped({7, kHidden})));
    EXPECT_TRUE(BitwiseEqual(forward.gradient("hidden_states"),
                             expected.gradients.hidden_states.reshaped({7, kHidden})));
}

TEST_P(CInterface, GivenTheRoutersOwnRoutingIsTheWholeLayer) {
    MoEConfig interleaved = experts_config(), latent = experts_config();
    interleaved.moe_mlp_glu_interleave_size = 3;
    latent.moe_latent_size = 8;  // what lies between its projections
    for (const MoEConfig& config : {experts_config(), interleaved, latent}) {
        const bool projects = config.moe_latent_size.has_value();
        TensorMap parameters = parameters_of(config);
        const Tensor hidden = random_tensor({17, 1, kHidden}, 1);
        const Tensor doutput = random_tensor({17, 1, kHidden}, 2);
        const LayerRun expected = run(config, parameters, hidden, doutput);
        const auto value = [&](const char* name) { return expected.values.at(name); };

        CLayer subject(config, GetParam());
        std::erase_if(parameters, [](const auto& parameter) {
            return !parameter.first.starts_with("experts.");  // it needs no others
        });
        subject.set(parameters);
        CForward forward(
            subject,
            projects ? value("latent_hidden_states") : hidden.reshaped({17, kHidden}),
            value("probs"), value("routing_map"));
        EXPECT_TRUE(
            BitwiseEqual(forward.output(), value(projects ? "latent_output" : "output")));
        forward.backward(projects ? value("d_latent_output")
                                  : doutput.reshaped({17, kHidden}));
        EXPECT_TRUE(BitwiseEqual(
            forward.gradient("hidden_states"),
            value(projects ? "d_latent_hidden_states" : "d_hidden_states_routed")));
        EXPECT_TRUE(BitwiseEqual(forward.gradient("probs"), value("d_probs")));
        for (const auto& [name, gradient] : expected.gradients.parameters)
            if (parameters.contains(name)) {
                EXPECT_TRUE(BitwiseEqual(forward.gradient(name), gradient)) << name;
            }
    }
}

// ----------------------------------------------------------------------------- memory

TEST_P(CInterface, ReadsWeightsWhereTheyAre) {
    const Placement placement = placement_of(GetParam());
    const TensorMap parameters = in_place(parameters_of(experts_config()), placement);
    const Tensor hidden = random_tensor({17, kHidden}, 1);
    CLayer subject(experts_config(), GetParam());
    subject.set(parameters);
    EXPECT_GT(std::abs(to_doubles(CForward(subject, hidden).output())[0]), 1e-6);
    zero(parameters.at("experts.linear_fc2.weight"));
    expect_zero(CForward(subject, hidden).output(), "output without FC2");
}

TEST_P(CInterface, CopiesWeightsOfAnotherTypeOnce) {
    const DType other = GetParam().dtype == DType::f32 ? DType::f64 : DType::f32;
    const TensorMap parameters =
        in_place(parameters_of(experts_config()), {MemorySpace::host, other});
    const Tensor hidden = random_tensor({17, kHidden}, 1);
    CLayer subject(experts_config(), GetParam());
    subject.set(parameters);
    const Tensor before = CForward(subject, hidden).output().clone();
    const Tensor& fc2 = parameters.at("experts.linear_fc2.weight");
    zero(fc2);
    EXPECT_TRUE(BitwiseEqual(CForward(subject, hidden).output(), before));
    subject.set({{"experts.linear_fc2.weight", fc2}});  // the way to make it seen
    expect_zero(CForward(subject, hidden).output(), "output without FC2");
}

TEST_P(CInterface, ForwardsOutliveTheirLayer) {
    const TensorMap parameters = parameters_of(experts_config());
    const Tensor hidden = random_tensor({17, kHidden}, 1);
    auto subject = std::make_unique<CLayer>(experts_config(), GetParam());
    subject->set(parameters);
    CForward kept(*subject, hidden), other(*subject, hidden);
    other.backward(hidden);
    subject.reset();
    kept.backward(hidden);
    for (const char* name : {"hidden_states", "experts.linear_fc1.weight"})
        EXPECT_TRUE(BitwiseEqual(kept.gradient(name), other.gradient(name))) << name;
}

TEST_P(CInterface, LetsGoOfWhatItKeptInTheLastBackward) {
    const TensorMap parameters = parameters_of(experts_config());
    const Tensor hidden = random_tensor({17, kHidden}, 1);
    CLayer subject(experts_config(), GetParam());
    subject.set(parameters);
    CForward kept(subject, hidden), used(subject, hidden);
    const auto bytes_after = [](const auto& action) {
        moe_counters before = {}, after = {};
        CLayer::check(moe_count(0, &before));
        action();
        CLayer::check(moe_count(0, &after));
        return after.tensor_bytes - before.tensor_bytes;
    };
    kept.backward(hidden);
    const moe_array doutput = array_of(hidden);
    const auto grown = bytes_after(
        [&] { CLayer::check(moe_last_backward(used.get(), &doutput, nullptr)); });
    std::int64_t made = 0;
    for (const auto& [name, parameter] : parameters) {
        EXPECT_TRUE(BitwiseEqual(used.gradient(name), kept.gradient(name))) << name;
        made += std::int64_t(used.gradient(name).size_bytes());
    }
    if (GetParam().tier == "reference_cpu") {
        EXPECT_LT(grown, made);
    }
    for (const auto backward : {moe_backward, moe_last_backward}) {
        EXPECT_EQ(backward(used.get(), &doutput, nullptr), MOE_BAD_INPUT);
        EXPECT_EQ(std::string(moe_last_error()),
                  "saved = used: moe_last_backward() let go of what the forward kept");
    }
    EXPECT_TRUE(BitwiseEqual(used.output(), kept.output())) << "both are still there";
}

TEST_P(CInterface, CountsWhatItAsksOfTheDevice) {
    const Placement placement = placement_of(GetParam());
    const TensorMap parameters = in_place(parameters_of(experts_config()), placement);
    const Tensor hidden = transfer(random_tensor({17, kHidden}, 1), placement);
    moe_counters before = {}, held = {}, after = {}, again = {};
    CLayer subject(experts_config(), GetParam());
    subject.set(parameters);
    CForward(subject, hidden).output();  // makes the layer, and copies it may need
    CLayer::check(moe_count(1, &before));
    {
        CForward forward(subject, hidden);
        CLayer::check(moe_count(0, &held));
    }
    CLayer::check(moe_count(1, &after));
    CLayer::check(moe_count(0, &again));
    EXPECT_EQ(after.bytes, before.bytes) << "all is freed";
    EXPECT_GE(after.peak_bytes, held.bytes);
    EXPECT_EQ(again.peak_bytes, after.bytes) << "a new peak began";
    EXPECT_EQ(after.tensor_bytes, before.tensor_bytes) << "all is freed";
    EXPECT_GE(after.peak_tensor_bytes, held.tensor_bytes);
    EXPECT_EQ(again.peak_tensor_bytes, after.tensor_bytes) << "a new peak began";
    // At least the output, and the two rows of each token that a backward needs
    const auto least = std::int64_t(3 * hidden.size_bytes());
    EXPECT_GE(held.tensor_bytes - before.tensor_bytes, least);
    if (placement.space == MemorySpace::host) return;
    EXPECT_GE(held.bytes - before.bytes, least);
    EXPECT_GT(held.launches, before.launches);
    EXPECT_GT(held.host_waits, before.host_waits);
}

INSTANTIATE_TEST_SUITE_P(Tiers, CInterface, testing::ValuesIn(available_suppliers()),
                         instance_name);

// ----------------------------------------------------------------------- the library

TEST(CInterface, NamesItsSuppliers) {
    const char* text = nullptr;
    ASSERT_EQ(moe_suppliers(&text), MOE_OK) << moe_last_error();
    const auto list = nlohmann::json::parse(text);
    ASSERT_EQ(list.size(), available_suppliers().size());
    for (std::size_t i = 0; i < list.size(); ++i) {
        const ComponentSpec supplier = available_suppliers()[i];
        const bool host = placement_of(supplier).space == MemorySpace::host;
        EXPECT_EQ(list[i]["supplier"], to_string(supplier));
        EXPECT_EQ(list[i]["space"], host ? "host" : "device");
        EXPECT_EQ(list[i]["emulated"], find_tier("tier", supplier.tier).is_emulated());
    }
}

TEST(CInterface, IsALibraryThatShowsNothingElse) {
    void* library = dlopen(c_library().c_str(), RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library, nullptr) << dlerror();
    const auto version = reinterpret_cast<decltype(&moe_interface_version)>(
        dlsym(library, "moe_interface_version"));
    ASSERT_NE(version, nullptr) << dlerror();
    EXPECT_EQ(version(), MOE_INTERFACE_VERSION);
    const auto suppliers =
        reinterpret_cast<decltype(&moe_suppliers)>(dlsym(library, "moe_suppliers"));
    const char *theirs = nullptr, *ours = nullptr;
    ASSERT_EQ(suppliers(&theirs), MOE_OK);
    ASSERT_EQ(moe_suppliers(&ours), MOE_OK);
    EXPECT_STREQ(theirs, ours);
    // moe::register_all_tiers(), moe::tiers()
    for (const char* name : {"_ZN3moe18register_all_tiersEv", "_ZN3moe5tiersEv"})
        EXPECT_EQ(dlsym(library, name), nullptr) << name;
}

}  // namespace
}  // namespace moe::test
