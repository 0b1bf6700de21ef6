// What a forward keeps for its backward, counted, against what each tier says of itself.

#include "core/kept_bytes.h"
#include "core/parameters.h"
#include "tests/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 17, kBatch = 3, kTokens = kSeq * kBatch;

struct KeptCase {
    std::string name;
    std::function<void(MoEConfig&)> change;
};

void recompute(MoEConfig& c, const std::vector<std::string>& modules) {
    c.moe_grouped_gemm = true;
    c.recompute_granularity = "selective";
    c.recompute_modules = modules;
}

const std::vector<KeptCase>& kept_cases() {
    static const std::vector<KeptCase> all = {
        {"plain", [](MoEConfig&) {}},
        {"not_gated", [](MoEConfig& c) { c.gated_linear_unit = false; }},
        {"gathered", [](MoEConfig& c) { c.moe_permute_fusion = true; }},
        {"clamped", [](MoEConfig& c) { c.activation_func_clamp_value = 1.0; }},
        {"fp64_router", [](MoEConfig& c) { c.moe_router_dtype = "fp64"; }},
        {"shared",
         [](MoEConfig& c) {
             c.moe_shared_expert_intermediate_size = 2 * c.ffn();
             c.moe_permute_fusion = true;
         }},
        {"shared_and_gate",
         [](MoEConfig& c) {
             c.moe_shared_expert_intermediate_size = c.ffn();
             c.moe_shared_expert_gate = true;
             c.moe_router_dtype = "fp64";
         }},
        {"latent", [](MoEConfig& c) { c.moe_latent_size = c.hidden_size / 2; }},
        {"latent_gathered",
         [](MoEConfig& c) {
             c.moe_latent_size = c.hidden_size / 2;
             c.moe_shared_expert_intermediate_size = c.ffn();
             c.moe_permute_fusion = true;
             c.moe_router_dtype = "fp64";
         }},
        {"dropping", [](MoEConfig& c) { c.moe_expert_capacity_factor = 0.5; }},
        {"padded",
         [](MoEConfig& c) {
             c.moe_expert_capacity_factor = 1.5;
             c.moe_pad_expert_input_to_capacity = true;
         }},
        {"on_input",
         [](MoEConfig& c) {
             c.moe_router_topk = 1;
             c.moe_router_pre_softmax = true;
             c.moe_apply_probs_on_input = true;
         }},
        {"shared_experts_again",
         [](MoEConfig& c) {
             c.moe_shared_expert_intermediate_size = 2 * c.ffn();
             c.moe_shared_expert_gate = true;
             c.moe_latent_size = c.hidden_size / 2;
             recompute(c, {"moe_act", "shared_experts"});
         }},
        {"moe_again",
         [](MoEConfig& c) {
             c.moe_shared_expert_intermediate_size = c.ffn();
             c.moe_permute_fusion = true;
             recompute(c, {"moe"});
         }},
        {"moe_again_fp64_router",
         [](MoEConfig& c) {
             c.moe_router_dtype = "fp64";
             c.moe_latent_size = c.hidden_size / 2;
             recompute(c, {"moe", "moe_act"});
         }},
    };
    return all;
}

class Kept : public testing::TestWithParam<ComponentSpec> {
  protected:
    MoEConfig config(const KeptCase& c, std::int64_t H, std::int64_t F) const {
        MoEConfig made = small_config(H, 5, 2, F);
        made.gated_linear_unit = true;
        made.activation_func = "silu";
        c.change(made);
        made.finalize();
        return made;
    }

    struct Left {
        std::int64_t bytes;
        Floor by_formula;
    };
    Left run(const MoEConfig& config) const {
        const ModuleSpec spec = ModuleSpec::uniform(GetParam());
        MoELayer layer(config, spec, random_parameters(config, 1));
        const Tensor hidden = random_tensor({kSeq, kBatch, config.hidden_size}, 2);
        RowCounter counter;  // in the first call a layer makes what it always has
        layer.forward(hidden, {}, {.observer = &counter});
        return {count_kept_bytes(layer, hidden),
                kept_by_formula(config, {kTokens, counter.rows}, spec)};
    }

  private:
    struct RowCounter : Observer {
        void on_value(Step, const std::string& name, const TensorView& view) override {
            if (name == "row_token") rows = view.dim(0);
        }
        std::int64_t rows = 0;
    };
};

// What is not in the formula is logits, maps and the like, and knows neither H nor F.
TEST_P(Kept, IsWhatTheTierSays) {
    for (const KeptCase& c : kept_cases()) {
        SCOPED_TRACE(c.name);
        std::vector<std::int64_t> metadata;
        for (const auto& [H, F] : {std::pair{40, 24}, {24, 72}}) {
            const Left left = run(config(c, H, F));
            metadata.push_back(left.bytes - left.by_formula.bytes);
        }
        EXPECT_EQ(metadata[0], metadata[1]);
        EXPECT_GT(metadata[0], 0);
        // Of fp64 at most: a few per expert, and a few ids and weights per row
        EXPECT_LE(metadata[0], kTokens * (6 * 5 * 8 + 2 * 10 * 8) + 4096);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, Kept, testing::ValuesIn(available_suppliers()),
                         instance_name);

// The schedule that optimized_gpu follows: tokens and h, and nothing of K H.
// Source: SonicMoE, arXiv 2512.14080: 2 H + 4 K F bytes of a token.
TEST(KeptByOptimizedGpu, IsTokensAndH) {
    NEEDS_DEVICE();
    available_tiers();
    MoEConfig c = small_config(64, 8, 2, 32);
    c.gated_linear_unit = c.moe_permute_fusion = true;
    c.activation_func = "silu";
    c.finalize();
    const ModuleSpec spec = ModuleSpec::uniform({"optimized_gpu", DType::bf16});
    const Floor kept = kept_by_formula(c, {1, 2}, spec);
    EXPECT_EQ(kept.bytes, 2 * 64 + 4 * 2 * 32);
    EXPECT_EQ(kept.formula, "TH + 2TKF");
}

}  // namespace
}  // namespace moe::test
