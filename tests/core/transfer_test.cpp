// Rounding to bf16, and copies and casts between places.

#include "core/transfer.h"
#include "core/past_cache.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/past_cache.h"
#include "core/rng.h"
#include "tests/support.h"

namespace moe::test {
namespace {

TEST(Transfer, SwapsBlocks) {
    // (2, 3, 2, 1) as (2, 2, 3, 1), and elements of four bytes, and of two at a time
    const Tensor bytes =
        Tensor::from<std::uint8_t>({12}, {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15});
    EXPECT_EQ(to_doubles(swap_blocks(bytes, 2, 3, 2)),
              (std::vector<double>{0, 2, 4, 1, 3, 5, 10, 12, 14, 11, 13, 15}));
    const Tensor floats = random_tensor({2, 3, 4}, 1);
    const Tensor swapped = swap_blocks(floats, 1, 2, 3);
    EXPECT_EQ(swapped.shape(), floats.shape());
    for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < 4; ++i)
                EXPECT_EQ(swapped.data<float>()[(c * 2 + r) * 4 + i],
                          floats.data<float>()[(r * 3 + c) * 4 + i]);
    EXPECT_EQ(swap_blocks(Tensor::zeros({0, 4}, DType::f32), 0, 2, 2).numel(), 0);
}

TEST(BFloat16, RoundsToNearestEven) {
    const auto bits = [](float value) { return BFloat16(value).bits; };
    EXPECT_EQ(bits(1.0f), 0x3f80);
    EXPECT_EQ(bits(1.0f + 0x1p-8f), 0x3f80);             // half way, to even: down
    EXPECT_EQ(bits(1.0f + 0x3p-8f), 0x3f82);             // half way, to even: up
    EXPECT_EQ(bits(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // above half way
    EXPECT_EQ(bits(-1.0f - 0x3p-8f), 0xbf82);
    // Carries into the exponent, and at the top into infinity.
    EXPECT_EQ(bits(std::bit_cast<float>(0x3fffffffu)), 0x4000);
    EXPECT_EQ(bits(std::bit_cast<float>(0x7f7fffffu)), 0x7f80);
    EXPECT_EQ(bits(INFINITY), 0x7f80);
    EXPECT_EQ(bits(-INFINITY), 0xff80);
    EXPECT_EQ(bits(-0.0f), 0x8000);
    EXPECT_TRUE(std::isnan(float(BFloat16(NAN))));
    // A NaN whose payload lies in the dropped half must not become infinity.
    EXPECT_TRUE(std::isnan(float(BFloat16(std::bit_cast<float>(0x7f800001u)))));
    EXPECT_TRUE(std::isnan(float(BFloat16(std::bit_cast<float>(0xffffffffu)))));
}

TEST(BFloat16, KeepsEveryValueItHas) {
    for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
        BFloat16 value;
        value.bits = static_cast<std::uint16_t>(bits);
        const BFloat16 again{float(value)};
        if (std::isnan(float(value)))
            ASSERT_TRUE(std::isnan(float(again))) << bits;
        else
            ASSERT_EQ(again.bits, bits);
    }
}

/// Rounding written out: of the two bf16 values around `value` the nearer, or the even
/// one. Exact, because doubles hold both distances. Beyond the largest, infinity stands
/// for 2^128.
std::uint16_t nearest_bf16(double value) {
    const auto magnitude_of = [](std::uint32_t bits) {
        return bits == 0x7f80 ? 0x1p128 : double(std::bit_cast<float>(bits << 16));
    };
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::min(std::abs(value), 0x1p128);
    std::uint32_t low = 0, high = 0x7f80;
    while (high - low > 1) {
        const std::uint32_t middle = (low + high) / 2;
        (magnitude_of(middle) <= magnitude ? low : high) = middle;
    }
    const double below = magnitude - magnitude_of(low);
    const double above = magnitude_of(high) - magnitude;
    const bool up = above < below || (above == below && low % 2 == 1);
    return static_cast<std::uint16_t>(sign | (up ? high : low));
}

TEST(BFloat16, RoundsEveryKindOfFloat) {
    const Rng rng(1);
    for (std::uint64_t i = 0; i < 100'000; ++i) {
        // Random bits: every exponent, subnormals, both signs. Every other one half way
        // between two neighbours, or right beside.
        std::uint32_t word = rng.bits(i);
        if (i % 2 == 0) word = (word & 0xffff0000u) + 0x8000u + word % 3 - 1;
        const float value = std::bit_cast<float>(word);
        if (!std::isfinite(value)) continue;
        ASSERT_EQ(BFloat16(value).bits, nearest_bf16(value)) << word;
    }
}

TEST(Transfer, RoundsFp64ToBf16Once) {
    // 1 + 2^-8 + 2^-40 lies above half way; by way of fp32 it would look like half way.
    std::vector<double> values = {1.0 + 0x1p-8 + 0x1p-40,
                                  1.0 + 0x3p-8 - 0x1p-40,
                                  0.0,
                                  -0.0,
                                  0x1p-134,
                                  0x1.0000000001p-134,
                                  1e300,
                                  -1e300,
                                  1e-320,
                                  INFINITY,
                                  -INFINITY,
                                  0x1.ffp127,
                                  0x1.fefffffffffffp127};
    const Rng rng(2);
    for (std::uint64_t i = 0; values.size() < 50'000; ++i) {
        // Half way between two bf16 values, then less and less beside it.
        const double half_way = 1.0 + (2.0 * rng.below(3 * i, 128) + 1.0) / 256.0;
        const double aside = std::ldexp(double(rng.below(3 * i + 1, 3)) - 1.0,
                                        -10 - int(rng.below(3 * i + 2, 42)));
        const int exponent = int(i % 268) - 140;
        values.push_back(std::ldexp(half_way + aside, exponent) * (i % 2 ? 1.0 : -1.0));
    }
    const Tensor source = Tensor::from<double>({std::int64_t(values.size())}, values);
    const Tensor target = transfer(source, {MemorySpace::host, DType::bf16});
    for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(target.data<BFloat16>()[i].bits, nearest_bf16(values[i]))
            << std::hexfloat << values[i];
    const Tensor nan = Tensor::from<double>({1}, {NAN});
    EXPECT_TRUE(
        std::isnan(to_doubles(transfer(nan, {MemorySpace::host, DType::bf16}))[0]));
}

TEST(Transfer, SharesWhatFitsAndCopiesTheRest) {
    const Tensor source = random_tensor({3, 5}, 1);
    const Placement fp32{MemorySpace::host, DType::f32},
        fp64{MemorySpace::host, DType::f64};
    EXPECT_EQ(transfer(source, fp32).view().bytes, source.view().bytes);
    EXPECT_NE(transfer(source.view(), fp32).view().bytes, source.view().bytes);
    EXPECT_TRUE(BitwiseEqual(transfer(source.view(), fp32), source));
    EXPECT_TRUE(BitwiseEqual(transfer(transfer(source, fp64), fp32), source));
    EXPECT_FALSE(transfer(Tensor(), fp64).defined());
    EXPECT_EQ(transfer(Tensor::zeros({0, 3}, DType::f32), fp64).shape(), (Shape{0, 3}));
}

TEST(Transfer, LeavesIntegersInTheirType) {
    const Placement fp32{MemorySpace::host, DType::f32};
    const Tensor wide = Tensor::from<std::int64_t>({2}, {1, INT64_MAX});
    const Tensor narrow = Tensor::from<std::int32_t>({2}, {1, INT32_MIN});
    const Tensor bytes = Tensor::from<std::uint8_t>({2}, {1, 255});
    for (const Tensor& integers : {wide, narrow, bytes}) {
        EXPECT_EQ(transfer(integers, fp32).view().bytes, integers.view().bytes);
        const Tensor copied = transfer(integers.view(), fp32);
        EXPECT_NE(copied.view().bytes, integers.view().bytes);
        EXPECT_TRUE(BitwiseEqual(copied, integers));
    }
    EXPECT_EQ(to_doubles(narrow), (std::vector<double>{1, INT32_MIN}));
    EXPECT_EQ(to_doubles(bytes), (std::vector<double>{1, 255}));
}

TEST(Transfer, CopiesOneTypeAndSizeOnly) {
    const Tensor floats = Tensor::from<float>({3}, {1, 2, 3});
    const Tensor target = Tensor::zeros({3}, DType::f32);
    copy(target, floats);
    EXPECT_TRUE(BitwiseEqual(target, floats));
    EXPECT_THROW(copy(target, Tensor::zeros({3}, DType::i32)), InternalError);
    EXPECT_THROW(copy(target, Tensor::zeros({4}, DType::f32)), InternalError);
}

// A device that is the host in disguise: its addresses lead nowhere until a bit is taken
// off, so whoever reads them on the host, instead of through copy(), crashes.
class FakeDevice : public testing::Test {
  protected:
    static constexpr std::uintptr_t kDisguise = std::uintptr_t{1} << 62;
    static void* undisguised(const void* bytes) {
        const auto address = reinterpret_cast<std::uintptr_t>(bytes);
        return reinterpret_cast<void*>(address & ~kDisguise);
    }
    static void* allocate(std::size_t bytes) {
        const auto address = reinterpret_cast<std::uintptr_t>(std::malloc(bytes));
        return reinterpret_cast<void*>(address | kDisguise);
    }
    static void release(void* bytes) { std::free(undisguised(bytes)); }
    static void fill(void* bytes, int value, std::size_t count) {
        std::memset(undisguised(bytes), value, count);
    }
    static void copy_bytes(void* target, const void* source, std::size_t bytes) {
        std::memcpy(undisguised(target), undisguised(source), bytes);
    }

    void SetUp() override {
        try {
            memory_functions(MemorySpace::device);
            GTEST_SKIP() << "this build has a device of its own";
        } catch (const InternalError&) {
            register_memory_space(MemorySpace::device,
                                  {allocate, release, fill, copy_bytes});
            registered_ = true;
        }
    }
    void TearDown() override {
        if (registered_) register_memory_space(MemorySpace::device, {});
    }

    bool registered_ = false;
    const Placement fp32_{MemorySpace::device, DType::f32};
    const Placement fp64_{MemorySpace::device, DType::f64};
    const Placement host_{MemorySpace::host, DType::f32};
};

TEST_F(FakeDevice, IsReachedThroughItsOwnFunctionsOnly) {
    const Tensor source = random_tensor({3, 5}, 1);
    const Tensor there = transfer(source, fp32_);
    EXPECT_EQ(there.space(), MemorySpace::device);
    EXPECT_EQ(transfer(there, fp32_).view().bytes, there.view().bytes);
    EXPECT_TRUE(BitwiseEqual(transfer(there, host_), source));
    EXPECT_TRUE(BitwiseEqual(transfer(there.clone(), host_), source));
    EXPECT_NE(there.clone().view().bytes, there.view().bytes);
    // With a cast: on the way there, on the device, and on the way back.
    const Tensor wide = transfer(source, fp64_);
    EXPECT_EQ(wide.dtype(), DType::f64);
    EXPECT_EQ(wide.space(), MemorySpace::device);
    const Tensor back = transfer(wide, fp32_);
    EXPECT_EQ(back.space(), MemorySpace::device);
    EXPECT_TRUE(BitwiseEqual(transfer(back, host_), source));
    EXPECT_TRUE(BitwiseEqual(transfer(wide, host_), source));
    EXPECT_EQ(to_doubles(wide), to_doubles(source));
    const Tensor zeros = Tensor::zeros({2, 3}, DType::i64, MemorySpace::device);
    EXPECT_EQ(to_doubles(zeros), std::vector<double>(6));
    EXPECT_EQ(transfer(Tensor::zeros({0, 3}, DType::f32), fp64_).shape(), (Shape{0, 3}));
}

TEST_F(FakeDevice, IsUnknownUntilRegistered) {
    const auto device = MemorySpace::device;
    register_memory_space(device, {});
    EXPECT_THROW(memory_functions(device), InternalError);
    EXPECT_THROW(Tensor::empty({1}, DType::f32, device), InternalError);
    EXPECT_THROW(transfer(random_tensor({1}, 1), fp32_), InternalError);
}

/// Copies of many megabytes go another way; each must reach its own bytes and no other.
TEST(PastCache, CopiesTheBytesAndNoOther) {
    constexpr std::size_t kMuch = std::size_t(64) << 20, kRoom = 4096;
    std::vector<std::uint8_t> source(kRoom + 64), target(kRoom + 64);
    for (std::size_t i = 0; i < source.size(); ++i) source[i] = std::uint8_t(i * 7 + 1);
    for (const std::size_t total : {kRoom, kMuch})
        for (const std::size_t to : {0, 1, 16, 20})
            for (const std::size_t from : {0, 3, 16})
                for (const std::size_t count : {0, 1, 15, 16, 17, 1000, 4096 - 16}) {
                    std::fill(target.begin(), target.end(), 0);
                    std::vector<std::uint8_t> expected = target;
                    std::copy_n(source.begin() + from, count, expected.begin() + to);
                    copy_for(total)(target.data() + to, source.data() + from, count);
                    ASSERT_EQ(target, expected) << total << to << from << count;
                }
}

/// A tensor beyond a core's cache, of which no row begins where a word does.
TEST(PastCache, LargeTensorsAreCopiedWhole) {
    const std::int64_t rows = 4099, width = 1023;
    std::vector<float> values(rows * width);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(i % 65521);
    const Tensor tensor = Tensor::from({rows, width}, values);
    EXPECT_TRUE(BitwiseEqual(tensor.clone(), tensor));
}

}  // namespace
}  // namespace moe::test
