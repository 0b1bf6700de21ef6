/// @file
/// One seeded, counter-based random generator for all tiers: element i of a stream is a
/// pure function of (seed, stream, i), so any thread of any tier can draw it on its own.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace moe {

/// Philox4x32-10: ten rounds of multiply-and-swap on a 128-bit counter under a 64-bit
/// key. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                  std::uint32_t key0,
                                                  std::uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = 0xD2511F53ull * counter[0];
        const std::uint64_t b = 0xCD9E8D57ull * counter[2];
        counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key0,
                   static_cast<std::uint32_t>(b),
                   static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key1,
                   static_cast<std::uint32_t>(a)};
        key0 += 0x9E3779B9u;  // Weyl sequence: the golden ratio,
        key1 += 0xBB67AE85u;  // and the square root of three
    }
    return counter;
}

/// A stream of random numbers addressed by index.
class Rng {
  public:
    /// Streams of one seed are independent; give each tensor its own.
    constexpr explicit Rng(std::uint64_t seed, std::uint64_t stream = 0)
        : seed_(seed), stream_(stream) {}

    /// 32 random bits at `index`.
    constexpr std::uint32_t bits(std::uint64_t index) const { return block(index)[0]; }

    /// Uniform in (0, 1), never 0 or 1.
    constexpr double uniform(std::uint64_t index) const { return to_unit(bits(index)); }

    /// Uniform integer in [0, bound); the bias is below bound / 2^32.
    constexpr std::uint32_t below(std::uint64_t index, std::uint32_t bound) const {
        return static_cast<std::uint32_t>((std::uint64_t{bits(index)} * bound) >> 32);
    }

    /// Standard normal by the Box-Muller transform.
    double normal(std::uint64_t index) const {
        const auto words = block(index);
        const double radius = std::sqrt(-2.0 * std::log(to_unit(words[0])));
        return radius * std::cos(2.0 * std::numbers::pi * to_unit(words[1]));
    }

  private:
    constexpr std::array<std::uint32_t, 4> block(std::uint64_t index) const {
        return philox4x32({low(index), high(index), low(stream_), high(stream_)},
                          low(seed_), high(seed_));
    }
    static constexpr std::uint32_t low(std::uint64_t word) {
        return static_cast<std::uint32_t>(word);
    }
    static constexpr std::uint32_t high(std::uint64_t word) {
        return static_cast<std::uint32_t>(word >> 32);
    }
    static constexpr double to_unit(std::uint32_t word) { return (word + 0.5) * 0x1p-32; }

    std::uint64_t seed_, stream_;
};

}  // namespace moe
