// `moe info --models`: each row against what it points to, and docs/models.md against the
// rows.

#include "cli/info/models.h"

#include <nlohmann/json.hpp>
#include <set>

#include "cli/golden/golden.h"
#include "cli/info/captured.h"
#include "cli/places.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using Names = std::set<std::string>;

TEST(Models, NameEveryPresetAndEveryGoldenCaseOfAModelOnce) {
    std::vector<std::string> presets, cases;
    Names families;
    for (const ModelRow& row : model_rows()) {
        EXPECT_TRUE(families.insert(row.family).second) << row.family << " twice";
        std::string names = row.presets;
        std::replace(names.begin(), names.end(), ',', ' ');
        for (const std::string& name : split(names)) presets.push_back(name);
        if (!row.golden.empty()) cases.push_back(row.golden);
    }
    const Names known(preset_names().begin(), preset_names().end());
    EXPECT_EQ(Names(presets.begin(), presets.end()), known);
    EXPECT_EQ(presets.size(), known.size());

    Names files;
    for (const std::string folder : {"", "models/"})
        for (const auto& entry :
             std::filesystem::directory_iterator(golden_folder() + "/" + folder))
            if (entry.path().stem().string().starts_with("hf_"))
                files.insert(folder + entry.path().stem().string());
    EXPECT_EQ(Names(cases.begin(), cases.end()), files);
    EXPECT_EQ(cases.size(), files.size());
}

TEST(Models, AreVerifiedOrLikeOneThatIsOrLackSomething) {
    Names verified;
    for (const ModelRow& row : model_rows())
        if (!row.golden.empty()) verified.insert(row.family);
    for (const ModelRow& row : model_rows()) {
        EXPECT_EQ(verified.contains(row.family), row.as.empty() && !row.golden.empty());
        if (!row.as.empty()) {
            EXPECT_TRUE(verified.contains(row.as)) << row.family;
        }
        EXPECT_FALSE(row.golden.empty() && row.as.empty() && row.missing.empty())
            << row.family;
    }
}

/// What a preset sets beyond its sizes and its losses, and a golden case of its model.
void expect_same_layer(const std::string& name, const ModelRow& row) {
    MoEConfig of_preset = preset(name, 1);
    MoEConfig of_case =
        load_golden(golden_folder() + "/" + row.golden + ".safetensors").config;
    of_preset.finalize();
    of_case.finalize();
    EXPECT_EQ(of_preset.moe_router_topk == 1, of_case.moe_router_topk == 1) << name;
    const Names free = {"moe_grouped_gemm",
                        "moe_permute_fusion",
                        "moe_router_fusion",
                        "moe_router_dtype",
                        "moe_z_loss_coeff",
                        "moe_aux_loss_coeff",
                        "moe_router_load_balancing_type"};
    const auto a = config_to_json(of_preset), b = config_to_json(of_case);
    for (const auto& [field, value] : a.items()) {
        if (free.contains(field)) continue;
        // Sizes and factors are each model's own; whether they are set is compared.
        if (value.is_number() && b[field].is_number()) continue;
        EXPECT_EQ(value, b[field]) << name << ", " << field;
    }
}

TEST(Models, ThatHaveAPresetHaveTheSwitchesOfTheirGoldenCase) {
    for (const ModelRow& row : model_rows()) {
        std::string names = row.presets;
        std::replace(names.begin(), names.end(), ',', ' ');
        for (const std::string& name : split(names)) expect_same_layer(name, row);
    }
}

/// The field of ours that a config sets: those of other names are Megatron's.
std::string field_of_ours(const MoEConfig& config) {
    if (config.moe_router_group_score_topk) return "moe_router_group_score_topk";
    if (!config.moe_router_norm_topk_prob) return "moe_router_norm_topk_prob";
    return config.activation_func == "gelu_tanh" ? "activation_func" : "";
}

TEST(Models, SayWhichFieldIsNotMegatrons) {
    std::map<std::string, std::string> ours;
    for (const ModelRow& row : model_rows()) {
        if (row.golden.empty()) continue;
        const std::string file = golden_folder() + "/" + row.golden + ".safetensors";
        ours[row.family] = field_of_ours(load_golden(file).config);
        EXPECT_EQ(row.ours, ours[row.family]) << row.family;
    }
    for (const ModelRow& row : model_rows()) {
        if (!row.as.empty()) {
            EXPECT_EQ(row.ours, ours.at(row.as)) << row.family;
        }
        EXPECT_LE(row.family.size(), 31u) << "the column of `moe info --models`";
    }
}

TEST(Models, ArePrinted) {
    const Output output = moe("info --models");
    EXPECT_EQ(output.code, kExitOk) << output.err;
    for (const char* words :
         {"✓ Mixtral ", "golden case hf_mixtral; preset mixtral_8x7b, mixtral_8x22b",
          "~ GLM-5 ", "its code computes what that of GLM-4.5 does", "✗ Phi-3.5-MoE ",
          "sparsemixer", "by moe_router_norm_topk_prob, which is not Megatron's"})
        EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
    EXPECT_TRUE(IsBadInput("info --models --json", {"--json", "--models"}));
    EXPECT_TRUE(IsBadInput("info --page " + golden_folder() + "/README.md",
                           {"README.md", "must stand in the page"}));
}

TEST(Models, ThatAreCapturedMatchUnlessTheyLackSomething) {
    Names missing, there, codes;
    for (const ModelRow& row : model_rows()) {
        if (!row.missing.empty()) missing.insert(row.code);
        if (!row.golden.empty() || !row.as.empty()) there.insert(row.code);
    }
    for (const CapturedRow& row : captured_rows()) {
        EXPECT_TRUE(codes.insert(row.code).second) << row.code << " twice";
        EXPECT_NE(row.outcome, "differs") << row.code;
        if (row.outcome == "refused") {
            EXPECT_FALSE(there.contains(row.code) && !missing.contains(row.code))
                << row.code << ": " << row.what;
        }
        if (row.outcome != "match") continue;
        EXPECT_LE(std::stod(row.fp64), 1e-6) << row.code;
        EXPECT_LE(std::stod(row.fp32), 2e-6) << row.code;
        EXPECT_LE(std::stod(row.bf16), 1e-2) << row.code;
    }
    // All of transformers' that stand in the other tables
    for (const std::string& code : there)
        if (code.find('/') == std::string::npos && code != "kimi_k25") {
            EXPECT_TRUE(codes.contains(code)) << code;
        }
}

// As `moe info --page docs/models.md` writes it.
TEST(Models, ThePageIsUpToDate) {
    const std::string path = project_root() + "/docs/models.md";
    std::ifstream file(path, std::ios::binary);
    const std::string page{std::istreambuf_iterator<char>(file), {}};
    if (page.empty()) GTEST_SKIP() << "needs the source tree";
    EXPECT_EQ(with_regions(path, page, model_regions(), "info"), page)
        << "run moe info --page docs/models.md";
}

}  // namespace
}  // namespace moe::test
