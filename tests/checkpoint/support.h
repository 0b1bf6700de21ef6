/// @file
/// What the suites about checkpoints share.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "core/checkpoint/layer.h"
#include "core/error.h"
#include "core/moe_layer.h"
#include "core/safetensors.h"
#include "core/transfer.h"
#include "tests/core/safetensors_support.h"
#include "tests/support.h"

namespace moe::test {

/// tests/checkpoints/<model>, as transformers wrote it.
inline std::string stored_checkpoint(const std::string& model) {
    return golden_folder() + "/../checkpoints/" + model;
}

/// Models that are stored: one of each way to lay experts out. Of all layer 1.
inline const std::vector<std::string> kStoredModels = {
    "mixtral", "qwen3_moe",        "deepseek_v3", "gpt_oss",
    "llama4",  "granitemoeshared", "dbrx"};

/// The message of what `act` throws; "" when it throws nothing.
template <typename Act>
std::string message_of(const Act& act) {
    try {
        act();
        return "";
    } catch (const InputError& error) {
        return error.what();
    }
}

/// All tensors of a stored checkpoint, in memory.
inline TensorMap tensors_of(const std::string& dir) {
    TensorMap all;
    for (const auto& entry : fs::directory_iterator(dir)) {
        if (entry.path().extension() != ".safetensors") continue;
        const SafetensorsFile file = SafetensorsFile::open(entry.path());
        for (const std::string& name : file.names()) all[name] = file.tensor(name);
    }
    return all;
}

inline std::string config_text(const std::string& dir) {
    return read_bytes(dir + "/config.json");
}

/// The forward in fp64 on the CPU. @param hidden  (S, B, H)
inline std::vector<double> fp64_output(const checkpoint::Layer& loaded,
                                       const Tensor& hidden) {
    available_suppliers();  // registers the tiers
    MoELayer layer(loaded.config, ModuleSpec::uniform({"reference_cpu", DType::f64}),
                   loaded.parameters);
    return to_doubles(layer.forward(hidden, {}, {.training = false}).output);
}

/// Holds a layer against the output that the model's own block had.
inline void expect_output(const checkpoint::Layer& loaded, const std::string& model) {
    const SafetensorsFile file =
        SafetensorsFile::open(stored_checkpoint(model) + ".safetensors");
    const std::vector<double> ours = fp64_output(loaded, file.tensor("hidden_states"));
    const std::vector<double> theirs = to_doubles(file.tensor("output"));
    ASSERT_EQ(ours.size(), theirs.size());
    // Their softmax is in fp32, whatever the dtype
    for (std::size_t i = 0; i < ours.size(); ++i)
        ASSERT_NEAR(ours[i], theirs[i], 1e-6) << model << ", element " << i;
}

/// Whether two layers have the same config and the same bits.
inline void expect_same_layer(const checkpoint::Layer& a, const checkpoint::Layer& b) {
    EXPECT_EQ(config_to_json(a.config), config_to_json(b.config));
    ASSERT_EQ(a.parameters.size(), b.parameters.size());
    for (const auto& [name, tensor] : a.parameters) {
        ASSERT_TRUE(b.parameters.contains(name)) << name;
        const Tensor& other = b.parameters.at(name);
        ASSERT_EQ(tensor.shape(), other.shape()) << name;
        ASSERT_EQ(tensor.dtype(), other.dtype()) << name;
        EXPECT_EQ(
            0, std::memcmp(tensor.view().bytes, other.view().bytes, tensor.size_bytes()))
            << name;
    }
}

}  // namespace moe::test
