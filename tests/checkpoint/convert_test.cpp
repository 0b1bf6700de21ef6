// convert_test.cpp: checkpoints in every layout and back, and what is refused on the way.

#include "core/checkpoint/convert.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include "core/checkpoint/layouts.h"
#include "tests/checkpoint/support.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using checkpoint::convert;
using checkpoint::load_layer;
using nlohmann::json;

/// The layout that the model's own code writes.
std::string own_layout(const std::string& model) {
    return model == "qwen3_moe"          ? "qwen2_moe"
           : model == "granitemoeshared" ? "granitemoe"
                                         : model;
}

class Conversion : public testing::TestWithParam<std::string> {
  protected:
    std::string stored() const { return stored_checkpoint(GetParam()); }
    TempFolder folder_;
};
INSTANTIATE_TEST_SUITE_P(, Conversion, testing::ValuesIn(kStoredModels),
                         [](const auto& info) { return info.param; });

TEST_P(Conversion, every_layout_holds_the_same_layer) {
    const checkpoint::Layer layer = load_layer(stored(), 1);
    int held = 0;
    for (const std::string& layout : checkpoint::layout_names()) {
        const std::string to = folder_.file(layout);
        const std::string refused = message_of([&] { convert({stored(), to, layout}); });
        if (!refused.empty()) {
            EXPECT_THAT(refused, testing::HasSubstr("has no name for "));
            EXPECT_FALSE(fs::exists(to)) << layout;
            continue;
        }
        ++held;
        expect_same_layer(layer, load_layer(to, 1));
        EXPECT_EQ(config_text(to), config_text(stored()));
    }
    EXPECT_EQ(folder_.num_files(), held);  // nothing of those that were refused
    EXPECT_EQ(held, GetParam() == "gpt_oss" ? 5 : 23);
}

/// To Megatron's names and back to the model's own: the file that transformers wrote.
TEST_P(Conversion, and_back_it_is_what_it_was) {
    convert({stored(), folder_.file("there"), "megatron"});
    convert({folder_.file("there"), folder_.file("back"), own_layout(GetParam())});
    TensorMap before = tensors_of(stored()), after = tensors_of(folder_.file("back"));
    ASSERT_EQ(before.size(), after.size());
    for (const auto& [name, tensor] : before) {
        ASSERT_TRUE(after.contains(name)) << name;
        EXPECT_EQ(tensor.dtype(), after[name].dtype()) << name;
        EXPECT_EQ(tensor.shape(), after[name].shape()) << name;
        EXPECT_EQ(to_doubles(tensor), to_doubles(after[name])) << name;
    }
}

TEST_P(Conversion, one_layer_alone_is_one_file) {
    checkpoint::Conversion one{stored(), folder_.file("one"), "megatron"};
    one.layer = 1;
    const checkpoint::Converted done = convert(one);
    EXPECT_EQ(done.files, std::vector<std::string>{"model.safetensors"});
    EXPECT_EQ(done.others, 0);
    expect_same_layer(load_layer(stored(), 1), load_layer(folder_.file("one"), 1));
    const SafetensorsFile file =
        SafetensorsFile::open(folder_.file("one/model.safetensors"));
    EXPECT_EQ(file.metadata().at("format"), "pt");
    for (const std::string& name : file.names())
        EXPECT_THAT(name, testing::HasSubstr("s.1.mlp."));
}

TEST(ConversionIndex, names_every_tensor_and_its_bytes) {
    const TempFolder folder;
    convert({stored_checkpoint("mixtral"), folder.file("to"), "packed"});
    const json index =
        json::parse(read_bytes(folder.file("to/model.safetensors.index.json")));
    std::int64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_of(folder.file("to"))) {
        bytes += std::int64_t(tensor.size_bytes());
        EXPECT_TRUE(SafetensorsFile::open(
                        folder.file("to/" + index["weight_map"][name].get<std::string>()))
                        .contains(name));
    }
    EXPECT_EQ(index["metadata"]["total_size"], bytes);
    EXPECT_EQ(index["weight_map"].size(), tensors_of(folder.file("to")).size());
}

/// 2F = H and a model whose code reads both: the file that convert wrote says which.
TEST(ConversionIndex, what_it_wrote_is_not_ambiguous) {
    const TempFolder folder;
    fs::create_directory(folder.file("vl"));
    const std::int64_t H = 6, F = 3, E = 2;
    const json config = {{"model_type", "qwen3_vl_moe"}, {"hidden_size", H},
                         {"moe_intermediate_size", F},   {"num_local_experts", E},
                         {"num_experts_per_tok", 2},     {"num_hidden_layers", 1}};
    std::ofstream(folder.file("vl/config.json")) << config.dump();
    TensorMap tensors = {
        {"layers.0.mlp.gate.weight", Tensor::zeros({E, H}, DType::f32)},
        {"layers.0.mlp.experts.gate_up_proj", Tensor::empty({E, H, H}, DType::f32)},
        {"layers.0.mlp.experts.down_proj", Tensor::zeros({E, H, F}, DType::f32)}};
    Tensor& fc1 = tensors["layers.0.mlp.experts.gate_up_proj"];
    for (std::int64_t i = 0; i < fc1.numel(); ++i) fc1.data<float>()[i] = float(i);
    save_safetensors(folder.file("vl/model.safetensors"), tensors, {});
    checkpoint::Conversion there{folder.file("vl"), folder.file("to"), "llama4"};
    EXPECT_THAT(message_of([&] { convert(there); }),
                testing::HasSubstr("say which with --fc1-layout"));
    there.options.fc1_layout = "rows";
    convert(there);
    expect_same_layer(load_layer(folder.file("vl"), 0, {"rows"}),
                      load_layer(folder.file("to"), 0));
}

// ------------------------------------------------------------------ the command

std::string refusal_of(const std::string& line) {
    const Output output = moe("convert " + line);
    EXPECT_EQ(output.code, 2);
    EXPECT_EQ(output.out, "");
    return output.err;
}

TEST(ConvertCommand, says_what_it_wrote) {
    const TempFolder folder;
    const Output done = moe("convert " + stored_checkpoint("deepseek_v3") + " " +
                            folder.file("to") + "/ --layout megatron_sequential");
    EXPECT_EQ(done.code, 0) << done.err;
    EXPECT_THAT(done.out, testing::StartsWith(folder.file("to") +
                                              "/: layer 1 as megatron_sequential, "));
    EXPECT_THAT(done.out, testing::EndsWith("other tensors as they were, in 3 files\n"));
    EXPECT_EQ(load_layer(folder.file("to"), 1).layout,
              "per expert, linear_fc1/linear_fc2");
}

TEST(ConvertCommand, overwrites_a_checkpoint_when_told_and_nothing_else) {
    const TempFolder folder;
    const std::string from = stored_checkpoint("mixtral"), to = folder.file("to");
    const std::string line = from + " " + to + " --layout packed";
    EXPECT_EQ(moe("convert " + line).code, 0);
    EXPECT_EQ(refusal_of(line),
              "moe: " + to +
                  " = is there already: must be a new folder, or --overwrite "
                  "given\n");
    std::ofstream(to + "/model-00009-of-00009.safetensors") << "of the old one";
    EXPECT_EQ(moe("convert " + line + " --overwrite").code, 0);
    EXPECT_FALSE(fs::exists(to + "/model-00009-of-00009.safetensors"));
    EXPECT_EQ(folder.num_files(), 1);
    fs::create_directory(folder.file("other"));
    std::ofstream(folder.file("other/thesis.txt")) << "precious";
    EXPECT_EQ(
        refusal_of(from + " " + folder.file("other") + " --layout packed --overwrite"),
        "moe: " + folder.file("other") +
            " = no checkpoint: only a folder with config.json is overwritten\n");
    EXPECT_TRUE(fs::exists(folder.file("other/thesis.txt")));
    EXPECT_EQ(refusal_of(to + " " + folder.file("./to") + " --layout packed --overwrite"),
              "moe: " + folder.file("./to") +
                  " = the same folder: must be another than the checkpoint's\n");
}

TEST(ConvertCommand, overwrites_no_folder_that_holds_more_than_a_checkpoint) {
    const TempFolder folder;
    const std::string from = stored_checkpoint("mixtral"), to = folder.file("to");
    const std::string line = from + " " + to + " --layout packed --overwrite";
    EXPECT_EQ(moe("convert " + line).code, 0);
    const auto refused = [&](const std::string& name) {
        EXPECT_EQ(refusal_of(line),
                  "moe: " + to + " = holds " + name +
                      ": only a folder of nothing but config.json, *.safetensors and "
                      "*.safetensors.index.json is overwritten\n");
        EXPECT_TRUE(fs::exists(to + "/" + name));
        EXPECT_TRUE(fs::exists(to + "/config.json"));
        EXPECT_EQ(folder.num_files(), 1);
        fs::remove(to + "/" + name);
    };
    for (const std::string name : {"tokenizer.json", "notes.txt", "safetensors"}) {
        std::ofstream(to + "/" + name) << "precious";
        refused(name);
    }
    fs::create_directory(to + "/folder.safetensors");
    refused("folder.safetensors");
    EXPECT_EQ(moe("convert " + line).code, 0);
}

TEST(ConvertCommand, after_an_error_all_is_as_it_was) {
    const TempFolder folder;
    const std::string from = stored_checkpoint("mixtral"), to = folder.file("to");
    EXPECT_THAT(refusal_of(from + " " + to + " --layout mixtrl"),
                testing::StartsWith("moe: layout = mixtrl: did you mean mixtral? allowed "
                                    "are qwen2_moe, "));
    EXPECT_EQ(refusal_of(stored_checkpoint("gpt_oss") + " " + to + " --layout mixtral"),
              "moe: layout = mixtral: has no name for router.bias\n");
    EXPECT_THAT(refusal_of(from + " " + to + " --layout packed --layer 5"),
                testing::StartsWith("moe: layer = 5: must be from 0 to 1"));
    EXPECT_THAT(refusal_of(from + " " + folder.file("no/to") + " --layout packed"),
                testing::HasSubstr("must be a folder that can be made"));
    EXPECT_EQ(folder.num_files(), 0);
    // On the way: the first file is longer than files may be
    rlimit before = {};
    ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
    const rlimit small = {1000, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const std::string line = refusal_of(from + " " + to + " --layout packed");
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_THAT(line, testing::HasSubstr("File too large"));
    EXPECT_EQ(folder.num_files(), 0);
}

TEST(CompareCheckpoint, runs_a_stored_layer_in_all_tiers) {
    NEEDS_DEVICE();
    const Output output =
        moe("compare --checkpoint " + stored_checkpoint("deepseek_v3") +
            " --layer 1 --golden none --report none --seq-length 8 --repeats 1");
    EXPECT_EQ(output.code, 0) << output.err;
    EXPECT_THAT(output.out, testing::HasSubstr("deepseek_v3, layer 1: H=6 E=8 K=4 F=5"));
    EXPECT_THAT(output.out,
                testing::HasSubstr("Weights per expert, gate_proj/up_proj/down_proj; 29 "
                                   "tensors, model.layers.1.mlp.gate.weight first"));
    EXPECT_THAT(output.out, testing::HasSubstr("all tiers agree"));
}

TEST(CompareCheckpoint, refuses_flags_that_do_not_go_together) {
    const std::string dir = stored_checkpoint("mixtral");
    const auto refused = [&](const std::string& flags) {
        const Output output = moe("compare " + flags);
        EXPECT_EQ(output.code, 2) << flags;
        return output.err.substr(output.err.rfind("moe: ") + 5);
    };
    EXPECT_EQ(refused("--layer 1"), "--layer = 1: needs --checkpoint\n");
    EXPECT_EQ(refused("--fc1-layout rows"), "--fc1-layout = rows: needs --checkpoint\n");
    EXPECT_EQ(refused("--checkpoint " + dir),
              "--layer = absent: is required with --checkpoint\n");
    for (const std::string start : {"--preset olmoe", "--scale 2", "--config c.json"})
        EXPECT_THAT(refused("--checkpoint " + dir + " --layer 1 " + start),
                    testing::EndsWith(" must be left out with --checkpoint\n"));
    EXPECT_EQ(refused("--checkpoint " + dir + " --layer 1 --num-experts 2"),
              dir +
                  ": experts.linear_fc1.weight = shape (4, 10, 6): must have shape (2, "
                  "10, 6)\n");
}

/// fp32 weights that bf16 does not hold: columns of bf16 are held against what they have.
TEST(CompareCheckpoint, rounds_weights_where_a_column_is_of_bf16) {
    const TempFolder folder;
    fs::copy(stored_checkpoint("granitemoeshared"), folder.file("fp32"));
    for (const auto& entry : fs::directory_iterator(folder.file("fp32")))
        if (entry.path().extension() == ".safetensors") fs::remove(entry.path());
    fs::remove(folder.file("fp32/model.safetensors.index.json"));
    TensorMap tensors = tensors_of(stored_checkpoint("granitemoeshared"));
    for (auto& [name, tensor] : tensors) {
        tensor = transfer(tensor, {MemorySpace::host, DType::f32});
        for (std::int64_t i = 0; i < tensor.numel(); ++i)
            tensor.data<float>()[i] *= 1.003f;
    }
    save_safetensors(folder.file("fp32/model.safetensors"), tensors, {});
    const std::string line = "compare --checkpoint " + folder.file("fp32") +
                             " --layer 1 --golden none --report none --seq-length 8 "
                             "--repeats 1 --tier reference_cpu";
    const Output fp32 = moe(line);
    EXPECT_EQ(fp32.code, 0) << fp32.err;
    EXPECT_THAT(fp32.err, testing::Not(testing::HasSubstr("rounded to bf16")));
    if (!missing_device().empty()) return;
    const Output both = moe(line + " --tier naive_gpu");
    EXPECT_EQ(both.code, 0) << both.out;
    EXPECT_THAT(both.err, testing::HasSubstr("weights are rounded to bf16"));
}

}  // namespace
}  // namespace moe::test
