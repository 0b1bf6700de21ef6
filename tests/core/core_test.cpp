// The words every tier speaks: element types, tensors, random numbers, specs.

#include <cmath>
#include <set>

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

TEST(DType, HasNamesAndSizes) {
    const std::vector<std::tuple<DType, std::string, std::size_t, bool>> table = {
        {DType::f64, "fp64", 8, true},   {DType::f32, "fp32", 4, true},
        {DType::bf16, "bf16", 2, true},  {DType::i64, "int64", 8, false},
        {DType::i32, "int32", 4, false}, {DType::u8, "uint8", 1, false}};
    for (const auto& row : table) {
        const DType dtype = std::get<0>(row);
        const std::string& name = std::get<1>(row);
        EXPECT_EQ(to_string(dtype), name);
        EXPECT_EQ(size_of(dtype), std::get<2>(row));
        EXPECT_EQ(is_floating(dtype), std::get<3>(row));
        if (is_floating(dtype))
            EXPECT_EQ(parse_dtype("--dtype", name), dtype);
        else
            EXPECT_TRUE(Rejects([&] { parse_dtype("--dtype", name); },
                                {"--dtype = " + name, "fp64, fp32, bf16"}));
    }
    EXPECT_TRUE(Rejects([] { parse_dtype("spec", "FP32"); }, {"spec = FP32"}));
    EXPECT_TRUE(Rejects([] { parse_dtype("spec", ""); }, {"spec = :"}));
}

TEST(Tensor, ChecksTypesAndSizes) {
    const Tensor tensor = Tensor::zeros({2, 3}, DType::f32);
    EXPECT_THROW(tensor.data<double>(), InternalError);
    EXPECT_THROW(tensor.reshaped({5}), InternalError);
    EXPECT_EQ(tensor.reshaped({6}).view().bytes, tensor.view().bytes);
    EXPECT_EQ(tensor.reshaped({6}).shape(), Shape{6});
    EXPECT_THROW(Tensor::from<float>({2, 2}, {1, 2, 3}), InternalError);
    EXPECT_THROW(Tensor::empty({2, -1}, DType::f32), InternalError);
    EXPECT_EQ(Tensor::zeros({3, 5}, DType::bf16).size_bytes(), 30u);
    EXPECT_EQ(Tensor::from<float>({}, {1.0f}).numel(), 1);
    EXPECT_EQ(to_string(Shape{3, 4}), "(3, 4)");
    EXPECT_EQ(to_string(Shape{}), "()");
}

TEST(Tensor, TellsUndefinedFromEmpty) {
    EXPECT_FALSE(Tensor().defined());
    EXPECT_FALSE(Tensor().clone().defined());
    EXPECT_EQ(Tensor().numel(), 0);
    EXPECT_EQ(Tensor().size_bytes(), 0u);
    const Tensor empty = Tensor::empty({0, 4}, DType::f64);
    EXPECT_TRUE(empty.defined());
    EXPECT_TRUE(empty.clone().defined());
    EXPECT_EQ(empty.numel(), 0);
}

TEST(Tensor, SharesOneArrayUntilCloned) {
    Tensor first = Tensor::from<float>({2}, {1, 2});
    Tensor same = first, other = first.clone();
    EXPECT_TRUE(BitwiseEqual(other, first));
    same.data<float>()[0] = 5;
    EXPECT_EQ(first.data<float>()[0], 5.0f);
    EXPECT_EQ(other.data<float>()[0], 1.0f);
    const Tensor reshaped = first.reshaped({1, 2, 1});
    first = Tensor();
    same = Tensor();
    EXPECT_EQ(reshaped.data<float>()[0], 5.0f) << "memory lives as long as its last user";
}

TEST(Tensor, LiesOnACacheLine) {
    for (std::int64_t count : {1, 3, 17, 1000}) {
        const Tensor tensor = Tensor::empty({count}, DType::u8);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().bytes) % 64, 0u);
    }
}

TEST(Tensor, ShowsWhatNobodyWroteInCheckedBuilds) {
#ifdef MOE_CHECKED
    for (DType dtype : {DType::f64, DType::f32, DType::bf16})
        for (double value : to_doubles(Tensor::empty({17}, dtype)))
            EXPECT_TRUE(std::isnan(value)) << to_string(dtype);
    for (double value : to_doubles(Tensor::empty({17}, DType::i32)))
        EXPECT_EQ(value, -1.0);
#else
    GTEST_SKIP() << "not a checked build";
#endif
}

// Known answers of Philox4x32-10, as published with Random123.
TEST(Rng, IsPhilox) {
    using Block = std::array<std::uint32_t, 4>;
    EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0, 0),
              (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u),
              (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822,
                         0x299f31d0),
              (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, HasTheRightMoments) {
    const Rng rng(1), other(1, 2);
    double sum = 0.0, squares = 0.0, fourths = 0.0, product = 0.0, uniforms = 0.0;
    std::array<int, 7> bins{};
    constexpr int kCount = 100'000;
    for (int i = 0; i < kCount; ++i) {
        const double x = rng.normal(i);
        sum += x, squares += x * x, fourths += x * x * x * x;
        product += x * other.normal(i);
        ASSERT_GT(rng.uniform(i), 0.0);
        ASSERT_LT(rng.uniform(i), 1.0);
        uniforms += rng.uniform(i);
        ASSERT_LT(rng.below(i, 7), 7u);
        ++bins[rng.below(i, 7)];
    }
    // Five standard errors of each estimate.
    EXPECT_NEAR(sum / kCount, 0.0, 0.016);
    EXPECT_NEAR(squares / kCount, 1.0, 0.023);
    EXPECT_NEAR(fourths / kCount, 3.0, 0.16);
    EXPECT_NEAR(product / kCount, 0.0, 0.016);
    EXPECT_NEAR(uniforms / kCount, 0.5, 0.0046);
    for (int bin : bins) EXPECT_NEAR(bin, kCount / 7.0, 560.0);
}

TEST(Rng, IsAPureFunctionOfSeedStreamAndIndex) {
    const Rng rng(1);
    EXPECT_EQ(rng.bits(5), Rng(1).bits(5));
    // Every one of their 192 bits counts.
    std::set<std::uint32_t> draws = {rng.bits(5)};
    for (int bit = 0; bit < 64; ++bit) {
        const std::uint64_t flip = std::uint64_t{1} << bit;
        draws.insert({Rng(1 ^ flip).bits(5), Rng(1, flip).bits(5), rng.bits(5 ^ flip)});
    }
    EXPECT_EQ(draws.size(), 1u + 3 * 64);
}

TEST(ModuleSpec, IsReadFromText) {
    available_suppliers();
    const ComponentSpec fp32{"reference_cpu", DType::f32},
        fp64{"reference_cpu", DType::f64};
    EXPECT_EQ(ModuleSpec::parse("", fp32), ModuleSpec::uniform(fp32));
    EXPECT_EQ(ModuleSpec::parse("experts=reference_cpu:fp64,router=reference_cpu", fp32),
              (ModuleSpec{fp32, fp32, fp64, fp32}));
    EXPECT_EQ(ModuleSpec::parse("shared_experts=reference_cpu:fp32,dispatcher="
                                "reference_cpu:fp32",
                                fp64),
              (ModuleSpec{fp64, fp32, fp64, fp32}));
    const auto rejects = [&](const std::string& text,
                             const std::vector<std::string>& words) {
        return Rejects([&] { ModuleSpec::parse(text, fp32); }, words);
    };
    EXPECT_TRUE(
        rejects("gate=reference_cpu", {"spec = gate=reference_cpu", "dispatcher"}));
    EXPECT_TRUE(rejects("router", {"spec = router"}));
    EXPECT_TRUE(rejects("router=fast_gpu", {"spec router = fast_gpu", "reference_cpu"}));
    EXPECT_TRUE(rejects("router=reference_cpu:fp8", {"fp8", "fp64, fp32, bf16"}));
    EXPECT_TRUE(
        rejects("experts=reference_cpu:bf16", {"reference_cpu:bf16", "fp64, fp32"}));
    EXPECT_TRUE(rejects("router=", {"spec router = :", "reference_cpu"}));
    EXPECT_TRUE(rejects("router=reference_cpu:", {"spec router = :", "fp64"}));
    EXPECT_TRUE(rejects(",router=reference_cpu", {"spec = :", "component=tier"}));
    EXPECT_TRUE(rejects("Router=reference_cpu", {"spec = Router=reference_cpu"}));
}

TEST(ModuleSpec, IsWrittenInFullOnlyWhereItIsMixed) {
    const ComponentSpec fp32{"a", DType::f32}, bf16{"b", DType::bf16};
    EXPECT_EQ(to_string(ModuleSpec::uniform(bf16)), "b:bf16");
    EXPECT_EQ(to_string(ModuleSpec{fp32, bf16, fp32, bf16}),
              "router=a:fp32 dispatcher=b:bf16 experts=a:fp32 shared_experts=b:bf16");
    for (auto component : {&ModuleSpec::router, &ModuleSpec::dispatcher,
                           &ModuleSpec::experts, &ModuleSpec::shared_experts}) {
        ModuleSpec spec = ModuleSpec::uniform(fp32);
        spec.*component = bf16;
        EXPECT_TRUE(to_string(spec).starts_with("router=")) << to_string(spec);
    }
}

TEST(ModuleSpec, RaisesTheRouterButNeverLowersIt) {
    const auto raised = [](DType layer, const std::optional<std::string>& router) {
        MoEConfig config;
        config.moe_router_dtype = router;
        ModuleSpec spec = ModuleSpec::uniform({"t", layer});
        spec.raise_router_dtype(config);
        EXPECT_EQ(spec.experts.dtype, layer);
        return spec.router.dtype;
    };
    EXPECT_EQ(raised(DType::bf16, "fp32"), DType::f32);
    EXPECT_EQ(raised(DType::bf16, "fp64"), DType::f64);
    EXPECT_EQ(raised(DType::f32, "fp64"), DType::f64);
    EXPECT_EQ(raised(DType::f64, "fp32"), DType::f64);
    EXPECT_EQ(raised(DType::bf16, std::nullopt), DType::bf16);
    EXPECT_EQ(raised(DType::f64, std::nullopt), DType::f64);
}

}  // namespace
}  // namespace moe::test
