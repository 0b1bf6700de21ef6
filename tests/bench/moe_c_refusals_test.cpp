// Bad input to the C interface: one line, exit code 2, and nothing half done.

#include <cmath>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/bench/moe_c_support.h"

namespace moe::test {
namespace {

/// The call was refused in one line that contains the fragments.
testing::AssertionResult Refused(std::int32_t code,
                                 const std::vector<std::string>& fragments) {
    const std::string line = moe_last_error();
    if (code != MOE_BAD_INPUT)
        return testing::AssertionFailure() << "returned " << code << ": " << line;
    if (line.find('\n') != std::string::npos || line.find(" = ") == std::string::npos)
        return testing::AssertionFailure() << "not \"field = value: …\": " << line;
    for (const std::string& fragment : fragments)
        if (line.find(fragment) == std::string::npos)
            return testing::AssertionFailure()
                   << "\"" << line << "\" lacks \"" << fragment << "\"";
    return testing::AssertionSuccess();
}

TEST(CInterfaceRefuses, LayersThatCannotBe) {
    const auto refused = [](const char* config, const char* spec,
                            const std::vector<std::string>& fragments) {
        moe_layer* layer = nullptr;
        EXPECT_TRUE(Refused(moe_create(config, spec, &layer), fragments));
        EXPECT_EQ(layer, nullptr);
    };
    const char* const cpu = "reference_cpu:fp32";
    refused("mixtral", cpu, {"preset = mixtral", "mixtral_8x7b"});
    refused("", cpu, {"preset"});
    refused("{\"hidden_size\": ", cpu, {"config"});
    refused("{\"hidden\": 3}", cpu, {"hidden = ", "field"});
    refused("{\"hidden_size\": -1}", cpu, {"hidden_size = -1"});
    MoEConfig two = small_config();
    two.expert_model_parallel_size = 2;
    refused(json_of(two).c_str(), cpu, {"expert_model_parallel_size = 2", "one rank"});
    MoEConfig hash = small_config();
    hash.moe_router_hash_vocab_size = 9;
    refused(json_of(hash).c_str(), cpu,
            {"moe_router_hash_vocab_size = 9", "takes no token ids"});
    refused("olmoe", "gpu:fp32", {"spec", "gpu", "reference_cpu"});
    refused("olmoe", "reference_cpu:bf16", {"spec", "reference_cpu:bf16"});
    refused("olmoe", "reference_cpu:fp32,naive_gpu", {"spec = ", "component=tier"});
    refused("olmoe", "", {"spec = "});
    refused("olmoe", "routers=reference_cpu", {"spec = routers=reference_cpu"});
    refused(nullptr, cpu, {"config = null"});
    refused("olmoe", nullptr, {"spec = null"});
    EXPECT_TRUE(Refused(moe_create("olmoe", cpu, nullptr), {"layer = null"}));
}

TEST(CInterfaceRefuses, ArraysThatDoNotFit) {
    NEEDS_DEVICE();
    available_suppliers();
    CLayer subject(small_config(4, 3, 2, 5), {"naive_gpu", DType::f32});
    const Tensor weight = random_tensor({3, 4}, 1);
    const auto refused = [&](const char* name, auto change,
                             const std::vector<std::string>& fragments) {
        moe_array array = array_of(weight);
        change(array);
        EXPECT_TRUE(Refused(moe_set_parameter(subject.get(), name, &array), fragments));
    };
    const char* const name = "router.weight";
    const auto same = [](moe_array&) {};
    refused("weight", same, {"parameter = weight", "experts.linear_fc1.weight"});
    refused("experts.linear_fc2.weight", same,
            {"experts.linear_fc2.weight", "(3, 4, 5)"});
    refused(name, [](auto& a) { a.shape[1] = 3; }, {name, "(3, 3)", "(3, 4)"});
    refused(name, [](auto& a) { a.shape[1] = -4; }, {name, "(3, -4)"});
    refused(name, [](auto& a) { a.rank = 5; }, {"router.weight rank = 5"});
    refused(name, [](auto& a) { a.rank = -1; }, {"router.weight rank = -1"});
    refused(name, [](auto& a) { a.dtype = 6; }, {"router.weight dtype = 6"});
    refused(name, [](auto& a) { a.dtype = MOE_INT32; }, {name, "int32", "floating"});
    refused(name, [](auto& a) { a.space = 2; }, {"router.weight space = 2"});
    refused(name, [](auto& a) { a.space = MOE_DEVICE; }, {"space = device", "host"});
    refused(name, [](auto& a) { a.data = nullptr; }, {"router.weight data = null"});
    refused(name, [](auto& a) { a.data = static_cast<char*>(a.data) + 2; },
            {"router.weight data", "multiple of 4"});
    const Tensor elsewhere = transfer(weight, {MemorySpace::device, DType::f32});
    refused(name, [&](auto& a) { a.data = elsewhere.view().bytes; },
            {"space = host", "device"});
    EXPECT_TRUE(Refused(moe_set_parameter(subject.get(), name, nullptr), {"null"}));
    EXPECT_TRUE(Refused(moe_set_parameter(nullptr, name, nullptr), {"layer = null"}));
}

TEST(CInterfaceRefuses, CallsThatCannotBeAnswered) {
    available_suppliers();
    MoEConfig config = small_config(4, 3, 2, 5);
    CLayer subject(config, {"reference_cpu", DType::f32});
    const Tensor hidden = random_tensor({6, 4}, 1), probs = random_tensor({6, 3}, 2);
    const Tensor map = Tensor::zeros({6, 3}, DType::u8);
    moe_array given = array_of(hidden), output = {};
    const moe_array weights = array_of(probs), routing = array_of(map);
    moe_saved* saved = nullptr;
    const auto whole = [&](const moe_array* input) {
        return moe_forward(subject.get(), input, 1, nullptr, &saved, &output);
    };
    const auto experts = [&](const moe_array* input, const moe_array* by,
                             const moe_array* to) {
        return moe_experts_forward(subject.get(), input, by, to, nullptr, &saved,
                                   &output);
    };
    EXPECT_TRUE(Refused(whole(&given), {"experts.linear_fc1.weight = absent"}));
    EXPECT_TRUE(Refused(experts(&given, &weights, &routing),
                        {"experts.linear_fc1.weight = absent", "(3, 10, 4)"}));
    config.finalize();
    const TensorMap parameters = random_parameters(config, 7);
    subject.set(parameters);
    EXPECT_TRUE(Refused(whole(&weights), {"hidden_states", "(6, 1, 3)", "(6, 1, 4)"}));
    EXPECT_TRUE(Refused(whole(nullptr), {"hidden_states = null"}));
    EXPECT_TRUE(Refused(experts(&weights, &weights, &routing), {"hidden_states"}));
    EXPECT_TRUE(Refused(experts(&given, &given, &routing), {"probs", "(6, 3)"}));
    EXPECT_TRUE(Refused(experts(&given, &weights, &weights), {"routing_map", "uint8"}));
    given.rank = 1;
    EXPECT_TRUE(Refused(whole(&given), {"hidden_states = (6)"}));
    given.rank = 0;
    EXPECT_TRUE(Refused(experts(&given, &weights, &routing), {"hidden_states"}));
    Tensor broken = hidden.clone();
    broken.data<float>()[5] = NAN;
    const moe_array nan = array_of(broken);
    EXPECT_TRUE(Refused(whole(&nan), {"logits[token 1", "finite"}));
    EXPECT_EQ(saved, nullptr);
    EXPECT_EQ(output.data, nullptr);

    CForward forward(subject, hidden);
    moe_array gradient = {};
    EXPECT_TRUE(Refused(moe_gradient(forward.get(), "hidden_states", &gradient),
                        {"gradient = hidden_states", "moe_backward"}));
    EXPECT_TRUE(Refused(moe_backward(forward.get(), &weights, nullptr),
                        {"grad_output", "(6, 4)"}));
    forward.backward(hidden);
    EXPECT_TRUE(Refused(moe_gradient(forward.get(), "probs", &gradient),
                        {"gradient = probs", "router.weight"}));
    EXPECT_EQ(gradient.data, nullptr);
    EXPECT_TRUE(Refused(moe_count(0, nullptr), {"counters = null"}));
    moe_counters counters = {};
    EXPECT_EQ(moe_count(0, &counters), MOE_OK);
    EXPECT_STREQ(moe_last_error(), "");
}

}  // namespace
}  // namespace moe::test
