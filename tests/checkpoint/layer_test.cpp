// layer_test.cpp: layers of checkpoints that transformers wrote, against its own numbers;
// the same tensors under every name and order that models have; and what is refused.

#include <gmock/gmock.h>

#include "core/parameters.h"
#include "tests/checkpoint/support.h"

namespace moe::test {
namespace {

using checkpoint::Layer;
using checkpoint::layer_from_tensors;
using checkpoint::load_layer;
using nlohmann::json;

// ------------------------------------------------------------ 1. what transformers wrote

class StoredCheckpoint : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, StoredCheckpoint, testing::ValuesIn(kStoredModels),
                         [](const auto& info) { return info.param; });

TEST_P(StoredCheckpoint, gives_what_the_models_own_block_gives) {
    expect_output(load_layer(stored_checkpoint(GetParam()), 1), GetParam());
}

TEST_P(StoredCheckpoint, in_memory_it_is_the_same) {
    const std::string dir = stored_checkpoint(GetParam());
    const Layer mapped = load_layer(dir, 1);
    const Layer held = layer_from_tensors(config_text(dir), tensors_of(dir), 1);
    expect_same_layer(mapped, held);
    EXPECT_EQ(mapped.layout, held.layout);
    EXPECT_EQ(mapped.names, held.names);
}

/// Without "model.layers.1.", as the state_dict of a block or of a decoder layer is.
TEST_P(StoredCheckpoint, a_blocks_tensors_are_found_under_any_prefix) {
    const std::string dir = stored_checkpoint(GetParam());
    const Layer mapped = load_layer(dir, 1);
    const std::string marker = GetParam() == "dbrx" ? "blocks.1." : "layers.1.";
    for (const std::string prefix : {"", "model.any."}) {
        TensorMap block;
        for (const auto& [name, tensor] : tensors_of(dir))
            if (const std::size_t at = name.find(marker); at != name.npos)
                block[prefix + name.substr(at + marker.size())] = tensor;
        expect_same_layer(mapped, layer_from_tensors(config_text(dir), block, 1));
    }
}

TEST(CheckpointLayer, says_how_experts_lie) {
    const auto layout = [](const std::string& model) {
        return load_layer(stored_checkpoint(model), 1).layout;
    };
    EXPECT_EQ(layout("mixtral"), "per expert, w1/w3/w2");
    EXPECT_EQ(layout("deepseek_v3"), "per expert, gate_proj/up_proj/down_proj");
    EXPECT_EQ(layout("gpt_oss"),
              "packed, transposed, gates and ups in turn, gate_up_proj/down_proj");
    EXPECT_EQ(layout("llama4"), "packed, transposed, gate_up_proj/down_proj");
    EXPECT_EQ(layout("granitemoeshared"), "packed, input_linear/output_linear");
    EXPECT_EQ(layout("dbrx"), "stacked rows, w1/v1/w2");
}

TEST(CheckpointLayer, where_nothing_moves_nothing_is_copied) {
    const Layer granite = load_layer(stored_checkpoint("granitemoeshared"), 1);
    EXPECT_FALSE(granite.copied);
    EXPECT_TRUE(load_layer(stored_checkpoint("mixtral"), 1).copied);
    const std::string dir = stored_checkpoint("granitemoeshared");
    const TensorMap tensors = tensors_of(dir);
    const Layer held = layer_from_tensors(config_text(dir), tensors, 1);
    EXPECT_EQ(
        held.parameters.at("experts.linear_fc1.weight").view().bytes,
        tensors.at("model.layers.1.block_sparse_moe.input_linear.weight").view().bytes);
}

TEST(CheckpointLayer, dtypes_are_those_of_the_source) {
    const Layer layer = load_layer(stored_checkpoint("deepseek_v3"), 1);
    EXPECT_EQ(layer.parameters.at("router.weight").dtype(), DType::f32);
    EXPECT_EQ(layer.parameters.at("experts.linear_fc1.weight").dtype(), DType::bf16);
}

// ------------------------------------------------------------ 2. other names and orders

/// A layer's tensors in memory, of which some change.
struct Held {
    std::string config;
    TensorMap tensors;

    explicit Held(const std::string& model)
        : config(config_text(stored_checkpoint(model))),
          tensors(tensors_of(stored_checkpoint(model))) {}
    Layer layer(const checkpoint::Options& options = {}) const {
        return layer_from_tensors(config, tensors, 1, options);
    }
    void rename(const std::string& from, const std::string& to) {
        TensorMap renamed;
        for (auto& [name, tensor] : tensors) {
            std::string other = name;
            if (const std::size_t at = other.find(from); at != other.npos)
                other.replace(at, from.size(), to);
            renamed[other] = tensor;
        }
        tensors = renamed;
    }
    void set(const std::string& field, const json& value) {
        json fields = json::parse(config);
        fields[field] = value;
        config = fields.dump();
    }
};

TEST(CheckpointLayer, knows_all_names_of_the_correction_bias) {
    const Layer layer = Held("deepseek_v3").layer();
    for (const std::string name :
         {"gate.expert_bias", "gate.bias", "gate.moe_statics.e_score_correction_bias",
          "e_score_correction_bias", "expert_bias", "router.expert_bias",
          "experts.e_score_correction_bias", "moe_statics.e_score_correction_bias",
          "router.e_score_correction_bias"}) {
        Held held("deepseek_v3");
        held.rename("gate.e_score_correction_bias", name);
        expect_same_layer(layer, held.layer());
    }
}

TEST(CheckpointLayer, knows_all_names_of_blocks_routers_and_shared_experts) {
    const Layer layer = Held("deepseek_v3").layer();
    const auto expect_same = [&](const std::string& from, const std::string& to) {
        Held held("deepseek_v3");
        held.rename(from, to);
        expect_same_layer(layer, held.layer());
    };
    for (const std::string block :
         {"block_sparse_moe.", "feed_forward.", "ffn.", "mixer.", "moe.", ""})
        expect_same("layers.1.mlp.", "layers.1." + block);
    for (const std::string router :
         {"router", "router.gate", "gate.wg", "router.layer", "router.classifier"})
        expect_same("gate.weight", router + ".weight");
    for (const std::string shared : {"shared_expert.", "shared_mlp.", "share_expert."})
        expect_same("shared_experts.", shared);
}

/// (E, rows, columns) of a packed tensor as (E, columns, rows).
Tensor transposed(const Tensor& source) {
    const std::int64_t E = source.dim(0), rows = source.dim(1), columns = source.dim(2);
    Tensor target = Tensor::empty({E, columns, rows}, source.dtype());
    for (std::int64_t e = 0; e < E; ++e)
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t c = 0; c < columns; ++c)
                target.data<BFloat16>()[(e * columns + c) * rows + r] =
                    source.data<BFloat16>()[(e * rows + r) * columns + c];
    return target;
}

/// Mixtral's experts, packed as a Qwen3-VL's.
Held packed_mixtral(bool columns) {
    Held held("mixtral");
    const Layer layer = held.layer();
    std::erase_if(held.tensors, [](const auto& tensor) {
        return tensor.first.find(".experts.") != std::string::npos;
    });
    const std::string experts = "model.layers.1.mlp.experts.";
    const auto put = [&](const std::string& name, const std::string& parameter) {
        const Tensor& tensor = layer.parameters.at(parameter);
        held.tensors[experts + name] = columns ? transposed(tensor) : tensor;
    };
    put("gate_up_proj", "experts.linear_fc1.weight");
    put("down_proj", "experts.linear_fc2.weight");
    held.set("model_type", "qwen3_vl_moe_text");
    held.set("moe_intermediate_size", 5);
    return held;
}

TEST(CheckpointLayer, shapes_tell_rows_from_columns) {
    const Layer layer = load_layer(stored_checkpoint("mixtral"), 1);
    for (const bool columns : {false, true}) {
        const Layer packed = packed_mixtral(columns).layer();
        EXPECT_EQ(packed.layout, columns ? "packed, transposed, gate_up_proj/down_proj"
                                         : "packed, gate_up_proj/down_proj");
        for (const auto& [name, tensor] : layer.parameters)
            EXPECT_EQ(to_doubles(packed.parameters.at(name)), to_doubles(tensor)) << name;
    }
}

TEST(CheckpointLayer, two_f_equal_to_h_is_asked_for) {
    const std::int64_t H = 6, F = 3, E = 2;
    Held held("mixtral");
    held.set("model_type", "qwen3_vl_moe");
    held.set("moe_intermediate_size", F);
    held.set("num_local_experts", E);
    held.set("num_hidden_layers", 2);
    Tensor fc1 = Tensor::empty({E, H, H}, DType::f32);
    for (std::int64_t i = 0; i < fc1.numel(); ++i) fc1.data<float>()[i] = float(i);
    held.tensors = {{"gate.weight", Tensor::zeros({E, H}, DType::f32)},
                    {"experts.gate_up_proj", fc1},
                    {"experts.down_proj", Tensor::zeros({E, H, F}, DType::f32)}};
    EXPECT_EQ(
        message_of([&] { held.layer(); }),
        "tensor \"experts.gate_up_proj\" = shape (2, 6, 6): may be (E, 2F, H) or (E, "
        "H, 2F), and the model's code reads both: say which with --fc1-layout rows "
        "or columns");
    EXPECT_EQ(to_doubles(held.layer({"rows"}).parameters.at("experts.linear_fc1.weight")),
              to_doubles(fc1));
    // Where FC1 is transposed FC2 is
    EXPECT_EQ(
        message_of([&] { held.layer({"columns"}); }),
        "tensor \"experts.down_proj\" = shape (2, 6, 3): must have shape (2, 3, 6)");
    held.tensors["experts.down_proj"] = Tensor::zeros({E, F, H}, DType::f32);
    const Layer columns = held.layer({"columns"});
    const std::vector<double> values =
        to_doubles(columns.parameters.at("experts.linear_fc1.weight"));
    EXPECT_EQ(values[1], 6.0);
    EXPECT_EQ(values[6], 1.0);
    const std::vector<double> in_turn = to_doubles(
        held.layer({"interleaved"}).parameters.at("experts.linear_fc1.weight"));
    EXPECT_EQ(in_turn[6], 2.0);      // the second gate
    EXPECT_EQ(in_turn[3 * 6], 1.0);  // the first up
    EXPECT_EQ(message_of([&] { held.layer({"row"}); }),
              "fc1_layout = row: must be rows, columns or interleaved");
}

TEST(CheckpointLayer, megatrons_own_names) {
    const Layer layer = load_layer(stored_checkpoint("deepseek_v3"), 1);
    const std::string config = config_to_json(layer.config).dump();
    const auto fc = [&](const std::string& parameter, std::int64_t expert) {
        const Tensor& all = layer.parameters.at(parameter);
        const Shape shape = {all.dim(1), all.dim(2)};
        const std::size_t bytes = all.size_bytes() / all.dim(0);
        return Tensor::borrow(
            {static_cast<char*>(all.view().bytes) + expert * bytes, all.dtype(), shape});
    };
    for (const bool grouped : {true, false}) {
        TensorMap tensors;
        const std::string mlp = "decoder.layers.1.mlp.";
        for (const auto& [name, tensor] : layer.parameters)
            if (!name.starts_with("experts.")) tensors[mlp + name] = tensor;
        for (std::int64_t e = 0; e < layer.config.num_experts(); ++e)
            for (const std::string fc_name : {"linear_fc1", "linear_fc2"})
                tensors[grouped ? fmt::format("{}experts.{}.weight{}", mlp, fc_name, e)
                                : fmt::format("{}experts.local_experts.{}.{}.weight", mlp,
                                              e, fc_name)] =
                    fc("experts." + fc_name + ".weight", e);
        tensors[mlp + "experts.linear_fc1._extra_state"] = Tensor::zeros({3}, DType::u8);
        const Layer megatron = layer_from_tensors(config, tensors, 1);
        expect_same_layer(layer, megatron);
        EXPECT_EQ(megatron.layout, "per expert, linear_fc1/linear_fc2");
    }
}

// ------------------------------------------------------------ 3. what is refused

/// The line for a changed checkpoint.
template <typename Change>
std::string refused(const std::string& model, const Change& change) {
    Held held(model);
    change(held);
    return message_of([&] { held.layer(); });
}

const std::string kMoe = "model.layers.1.block_sparse_moe.";

TEST(CheckpointLayer, refuses_tensors_that_do_not_fit) {
    EXPECT_EQ(refused("mixtral",
                      [](Held& h) { h.tensors.erase(kMoe + "experts.2.w3.weight"); }),
              "tensor \"model.layers.1.block_sparse_moe.experts.0.w3.weight\" = expert 2 "
              "is absent: must be there for experts 0 to 3");
    EXPECT_EQ(
        refused("mixtral",
                [](Held& h) {
                    std::erase_if(h.tensors, [](const auto& tensor) {
                        return tensor.first.ends_with(".w2.weight");
                    });
                }),
        "the block of tensor \"model.layers.1.block_sparse_moe.gate.weight\" = no FC2 "
        "(down_proj, w2, …): the block must have one");
    EXPECT_EQ(
        refused("mixtral",
                [](Held& h) {
                    h.tensors[kMoe + "experts.4.w1.weight"] =
                        Tensor::zeros({5, 6}, DType::bf16);
                }),
        "tensor \"model.layers.1.block_sparse_moe.experts.4.w1.weight\" = unexpected: "
        "experts must be 0 to 3, by the config");
    EXPECT_EQ(
        refused("mixtral",
                [](Held& h) {
                    h.tensors[kMoe + "gate.noise"] = Tensor::zeros({4}, DType::bf16);
                }),
        "tensor \"model.layers.1.block_sparse_moe.gate.noise\" = unexpected: no tensor "
        "of that name is known in an MoE block");
    const auto added = [](const std::string& name, const Shape& shape, DType dtype) {
        return refused("mixtral", [&](Held& h) {
            h.tensors[kMoe + name] = Tensor::zeros(shape, dtype);
        });
    };
    const std::string at = "tensor \"" + kMoe;
    EXPECT_EQ(added("e_score_correction_bias", {4}, DType::f32),
              at + "e_score_correction_bias\" = unexpected: the model's layer has no "
                   "expert bias");
    EXPECT_EQ(added("shared_experts.up_proj.weight", {5, 6}, DType::bf16),
              at + "shared_experts.up_proj.weight\" = unexpected: the layer of this "
                   "config has no such tensor");
    EXPECT_EQ(added("experts.1.w1.weight", {5, 6}, DType::f32),
              at + "experts.1.w1.weight\" = fp32: must be bf16 as the tensors before");
    EXPECT_EQ(added("router.weight", {4, 6}, DType::f32),
              at + "router.weight\" = unexpected: must not be there beside " + at +
                  "gate.weight\"");
    EXPECT_EQ(refused("mixtral", [](Held& h) { h.set("intermediate_size", 7); }),
              at + "experts.0.w1.weight\" = shape (5, 6): must have shape (7, 6)");
    EXPECT_EQ(
        refused("deepseek_v3",
                [](Held& h) {
                    h.tensors.erase("model.layers.1.mlp.gate.e_score_correction_bias");
                }),
        "the block of tensor \"model.layers.1.mlp.gate.weight\" = no expert bias: the "
        "block must have one");
}

TEST(CheckpointLayer, refuses_quantised_blocks) {
    for (const std::string name :
         {"experts.0.w1.weight_scale_inv", "experts.gate_up_proj_blocks",
          "experts.gate_up_proj_scales", "experts.0.w1.qweight"})
        EXPECT_THAT(refused("mixtral",
                            [&](Held& h) {
                                h.tensors[kMoe + name] = Tensor::zeros({1}, DType::u8);
                            }),
                    testing::AllOf(testing::HasSubstr(kMoe + name + "\" = quantised ("),
                                   testing::HasSubstr("dequantise it first")));
    EXPECT_EQ(refused("granitemoeshared",
                      [](Held& h) {
                          h.tensors[kMoe + "input_linear.weight"] =
                              Tensor::zeros({4, 10, 6}, DType::u8);
                      }),
              "tensor \"" + kMoe +
                  "input_linear.weight\" = U8: must be F64, F32 or BF16: "
                  "dequantise it first");
}

TEST(CheckpointLayer, refuses_layers_that_are_dense_or_absent) {
    const std::string dir = stored_checkpoint("deepseek_v3");
    EXPECT_EQ(message_of([&] { load_layer(dir, 0); }),
              "layer = 0: must be a layer of experts, which it is not: " + dir +
                  "/config.json: first_k_dense_replace is 1");
    EXPECT_EQ(message_of([&] { load_layer(dir, 2); }),
              "layer = 2: must be from 0 to 1, in " + dir + "/config.json");
    EXPECT_EQ(message_of([&] { load_layer(dir, -1); }),
              "layer = -1: must be from 0 to 1, in " + dir + "/config.json");
    EXPECT_EQ(refused("deepseek_v3",
                      [](Held& h) { h.tensors.erase("model.layers.1.mlp.gate.weight"); }),
              "layer = 1: must be a layer of experts: it has "
              "model.layers.1.mlp.shared_experts.up_proj.weight, and no router");
    EXPECT_EQ(refused("mixtral", [](Held& h) { h.rename("layers.1.", "layers.7."); }),
              "layer = 1: must be a layer of which there are tensors");
    const auto add_gate = [](Held& h, const std::string& part) {
        h.tensors[part + ".layers.1.mlp.gate.weight"] = Tensor::zeros({4, 6}, DType::f32);
    };
    EXPECT_EQ(refused("mixtral", [&](Held& h) { add_gate(h, "other"); }),
              "layer = 1: must be one, is model.layers.1. and other.layers.1.");
    EXPECT_EQ(refused("mixtral", [&](Held& h) { add_gate(h, "vision_tower"); }), "");
}

// ------------------------------------------------------------ 4. files and folders

/// A copy of a stored checkpoint, to be spoilt.
struct Spoilt : TempFolder {
    explicit Spoilt(const std::string& model) {
        fs::copy(stored_checkpoint(model), file("model"), fs::copy_options::recursive);
    }
    std::string dir() const { return file("model"); }
    std::string refused() const {
        return message_of([&] { load_layer(dir(), 1); });
    }
    void write(const std::string& name, const std::string& text) const {
        std::ofstream(dir() + "/" + name, std::ios::binary) << text;
    }
};

TEST(CheckpointFolder, refuses_what_is_not_there) {
    const TempFolder empty;
    EXPECT_EQ(message_of([&] { load_layer(empty.file("no"), 1); }),
              empty.file("no") +
                  " = absent: must be a folder with config.json and *.safetensors");
    EXPECT_EQ(message_of([&] { load_layer(empty.file("."), 1); }),
              empty.file(".") +
                  " = no *.safetensors: must hold model.safetensors, or "
                  "shards with their index");
    std::ofstream(empty.file("pytorch_model.bin")) << "x";
    EXPECT_EQ(message_of([&] { load_layer(empty.file("."), 1); }),
              empty.file(".") +
                  " = pickled tensors: must hold model.safetensors, or "
                  "shards with their index");
    const Spoilt spoilt("mixtral");
    fs::remove(spoilt.dir() + "/config.json");
    EXPECT_EQ(spoilt.refused(),
              spoilt.dir() + "/config.json = absent: must be a text file");
}

TEST(CheckpointFolder, refuses_a_shard_that_is_absent_and_an_index_that_lies) {
    const Spoilt spoilt("mixtral");
    const std::string index = spoilt.dir() + "/model.safetensors.index.json";
    const std::string shard = spoilt.dir() + "/model-00001-of-00002.safetensors";
    const std::string gate = kMoe + "gate.weight";
    const json whole = json::parse(read_bytes(index));
    const std::string of_gate =
        spoilt.dir() + "/" + whole["weight_map"][gate].get<std::string>();
    json lie = whole;
    lie["weight_map"][kMoe + "experts.1.w1.weight"] =
        of_gate == shard ? "model-00002-of-00002.safetensors"
                         : "model-00001-of-00002.safetensors";
    lie["weight_map"][kMoe + "experts.1.w2.weight"] =
        lie["weight_map"][kMoe + "experts.1.w1.weight"];
    spoilt.write("model.safetensors.index.json", lie.dump());
    EXPECT_THAT(spoilt.refused(), testing::HasSubstr(" = absent: " + index +
                                                     " says that it is in this shard"));
    spoilt.write("model.safetensors.index.json", whole.dump());
    EXPECT_EQ(spoilt.refused(), "");
    fs::remove(of_gate);
    EXPECT_EQ(spoilt.refused(), of_gate + " = absent: " + index + " says that tensor \"" +
                                    gate + "\" is in this shard");
    spoilt.write("model.safetensors.index.json", "{}");
    EXPECT_EQ(spoilt.refused(), index +
                                    " = no weight_map: must be a JSON object with the "
                                    "file of each tensor");
    lie["weight_map"][gate] = "../model.safetensors";
    spoilt.write("model.safetensors.index.json", lie.dump());
    EXPECT_EQ(spoilt.refused(),
              index + ": weight_map: \"" + gate +
                  "\" = \"../model.safetensors\": must be the name of a "
                  "file beside the index");
}

TEST(CheckpointFolder, reads_shards_without_an_index) {
    const Spoilt spoilt("mixtral");
    fs::remove(spoilt.dir() + "/model.safetensors.index.json");
    expect_same_layer(load_layer(spoilt.dir(), 1),
                      load_layer(stored_checkpoint("mixtral"), 1));
    fs::copy(spoilt.dir() + "/model-00001-of-00002.safetensors",
             spoilt.dir() + "/model-00003-of-00003.safetensors");
    EXPECT_THAT(spoilt.refused(), testing::HasSubstr("= twice: must not be in " +
                                                     spoilt.dir() + "/model-00001"));
}

TEST(CheckpointFolder, fp16_is_refused_by_name) {
    const Spoilt spoilt("granitemoeshared");
    for (const auto& entry : fs::directory_iterator(spoilt.dir())) {
        std::string bytes = read_bytes(entry.path());
        for (std::size_t at = bytes.find("\"BF16\""); at != bytes.npos;
             at = bytes.find("\"BF16\""))
            bytes.replace(at, 6, "\"F16\" ");
        std::ofstream(entry.path(), std::ios::binary) << bytes;
    }
    EXPECT_THAT(
        spoilt.refused(),
        testing::EndsWith("router.layer.weight\" = F16: must be F64, F32 or BF16: "
                          "fp16 is not read"));
}

}  // namespace
}  // namespace moe::test
