// warp_test.cu: shuffles, votes, matches and reductions, against their definitions. The
// same file runs on the executor and on a GPU.

#include <gtest/gtest.h>

#include <cstdint>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

using gpu::launch;

enum class Shuffle { index, up, down, xor_mask };

/// Lane l shuffles 100 + l; lanes not in `mask` do nothing.
__global__ void shuffle_kernel(int* result, Shuffle kind, int argument, int width,
                               unsigned mask) {
    const int lane = int(threadIdx.x);
    if (!(mask >> lane & 1)) return;
    const int value = 100 + lane;
    int got = 0;
    switch (kind) {
        case Shuffle::index: got = __shfl_sync(mask, value, argument, width); break;
        case Shuffle::up: got = __shfl_up_sync(mask, value, argument, width); break;
        case Shuffle::down: got = __shfl_down_sync(mask, value, argument, width); break;
        case Shuffle::xor_mask:
            got = __shfl_xor_sync(mask, value, argument, width);
            break;
    }
    result[lane] = got;
}

/// The lane that the programming guide's words name, written without bit tricks.
int expected_source(Shuffle kind, int lane, int argument, int width) {
    const int segment = lane / width, first = segment * width;
    switch (kind) {
        case Shuffle::index: return first + ((argument % width) + width) % width;
        case Shuffle::up: return lane - argument < first ? lane : lane - argument;
        case Shuffle::down:
            return lane + argument >= first + width ? lane : lane + argument;
        case Shuffle::xor_mask: break;
    }
    const int target = lane ^ argument;
    return target / width > segment ? lane : target;  // earlier segments are readable
}

TEST(ConformanceWarp, ShufflesReadTheLaneOfEveryWidthAndOffset) {
    DeviceArray<int> result(32);
    for (Shuffle kind : {Shuffle::index, Shuffle::up, Shuffle::down, Shuffle::xor_mask})
        for (int width : {1, 2, 4, 8, 16, 32})
            for (int argument = kind == Shuffle::index ? -33 : 0; argument < 32;
                 ++argument) {
                launch("shuffle_kernel", shuffle_kernel, {1, 32}, result.data(), kind,
                       argument, width, 0xffffffffu);
                const auto got = result.to_host();
                for (int lane = 0; lane < 32; ++lane)
                    ASSERT_EQ(got[lane],
                              100 + expected_source(kind, lane, argument, width))
                        << "kind " << int(kind) << " width " << width << " argument "
                        << argument << " lane " << lane;
            }
}

TEST(ConformanceWarp, ShufflesWorkWithinAPartialMaskAfterOthersLeft) {
    DeviceArray<int> result(32);
    const unsigned mask = 0x00ff0f0fu;  // the other lanes exit without taking part
    for (int xor_mask : {1, 2, 3}) {    // these stay within groups of four lanes
        launch("shuffle_kernel", shuffle_kernel, {1, 32}, result.data(),
               Shuffle::xor_mask, xor_mask, 32, mask);
        const auto got = result.to_host();
        for (int lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) {
                EXPECT_EQ(got[lane], 100 + (lane ^ xor_mask));
            }
    }
}

__global__ void two_groups_kernel(int* result) {
    const int lane = int(threadIdx.x);
    // Two halves of one warp, each with its own mask, in different branches.
    if (lane < 11)
        result[lane] = __shfl_sync(0x000007ffu, lane, 10);
    else
        result[lane] = __shfl_sync(0xfffff800u, lane, 31);
}

TEST(ConformanceWarp, DisjointMasksInDifferentBranchesDoNotDisturbEachOther) {
    DeviceArray<int> result(32);
    launch("two_groups_kernel", two_groups_kernel, {1, 32}, result.data());
    const auto got = result.to_host();
    for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(got[lane], lane < 11 ? 10 : 31);
}

__global__ void shuffle_wide_kernel(double* doubles, long long* integers, float* floats) {
    const int lane = int(threadIdx.x);
    doubles[lane] = __shfl_down_sync(0xffffffffu, lane + 0.125, 3);
    integers[lane] = __shfl_up_sync(0xffffffffu, (1ll << 40) * lane - 1, 5u);
    floats[lane] = __shfl_xor_sync(0xffffffffu, -0.5f * float(lane), 21);
}

TEST(ConformanceWarp, ShufflesMoveAllBitsOfWideTypes) {
    DeviceArray<double> doubles(32);
    DeviceArray<long long> integers(32);
    DeviceArray<float> floats(32);
    launch("shuffle_wide_kernel", shuffle_wide_kernel, {1, 32}, doubles.data(),
           integers.data(), floats.data());
    for (int lane = 0; lane < 32; ++lane) {
        EXPECT_EQ(doubles.to_host()[lane], (lane + 3 < 32 ? lane + 3 : lane) + 0.125);
        EXPECT_EQ(integers.to_host()[lane],
                  (1ll << 40) * (lane >= 5 ? lane - 5 : lane) - 1);
        EXPECT_EQ(floats.to_host()[lane], -0.5f * float(lane ^ 21));
    }
}

/// Every lane of `mask` takes part with its bit of `predicates`.
__global__ void vote_kernel(unsigned* result, unsigned mask, unsigned predicates) {
    const int lane = int(threadIdx.x);
    if (!(mask >> lane & 1)) return;
    const int predicate = int(predicates >> lane & 1) * 6;  // any non-zero value is true
    result[lane] = __ballot_sync(mask, predicate);
    result[32 + lane] = unsigned(__all_sync(mask, predicate));
    result[64 + lane] = unsigned(__any_sync(mask, predicate));
}

TEST(ConformanceWarp, VotesCountTheLanesOfTheMaskAlone) {
    DeviceArray<unsigned> result(96);
    for (unsigned mask : {0xffffffffu, 0x1u, 0x80000001u, 0x00ffff00u})
        for (unsigned predicates : {0u, 0xffffffffu, 0x00ffff00u, 0x5a5a5a5au, 1u}) {
            launch("vote_kernel", vote_kernel, {1, 32}, result.data(), mask, predicates);
            const auto got = result.to_host();
            for (int lane = 0; lane < 32; ++lane) {
                if (!(mask >> lane & 1)) continue;
                EXPECT_EQ(got[lane], predicates & mask);
                EXPECT_EQ(got[32 + lane], (predicates & mask) == mask ? 1u : 0u);
                EXPECT_EQ(got[64 + lane], (predicates & mask) != 0 ? 1u : 0u);
            }
        }
}

__global__ void match_kernel(unsigned* any, unsigned* all, int* predicate, unsigned mask,
                             int divisor) {
    const int lane = int(threadIdx.x);
    if (!(mask >> lane & 1)) return;
    any[lane] = __match_any_sync(mask, lane / divisor);
    all[lane] = __match_all_sync(mask, 7ull * (lane / divisor), &predicate[lane]);
}

TEST(ConformanceWarp, MatchFindsTheLanesWithTheSameValue) {
    DeviceArray<unsigned> any(32), all(32);
    DeviceArray<int> predicate(32);
    for (unsigned mask : {0xffffffffu, 0x0ff000ffu})
        for (int divisor : {1, 3, 32}) {
            launch("match_kernel", match_kernel, {1, 32}, any.data(), all.data(),
                   predicate.data(), mask, divisor);
            for (int lane = 0; lane < 32; ++lane) {
                if (!(mask >> lane & 1)) continue;
                unsigned equal = 0;
                for (int other = 0; other < 32; ++other)
                    if ((mask >> other & 1) && other / divisor == lane / divisor)
                        equal |= 1u << other;
                EXPECT_EQ(any.to_host()[lane], equal);
                EXPECT_EQ(all.to_host()[lane], equal == mask ? mask : 0u);
                EXPECT_EQ(predicate.to_host()[lane], equal == mask ? 1 : 0);
            }
        }
}

__global__ void reduce_kernel(int* result, unsigned mask) {
    const int lane = int(threadIdx.x);
    if (!(mask >> lane & 1)) return;
    const int value = (lane * 37) % 23 - 11;
    int* out = result + 8 * lane;
    out[0] = __reduce_add_sync(mask, value);
    out[1] = __reduce_min_sync(mask, value);
    out[2] = __reduce_max_sync(mask, value);
    out[3] = int(__reduce_min_sync(mask, unsigned(value)));
    out[4] = int(__reduce_max_sync(mask, unsigned(value)));
    out[5] = int(__reduce_and_sync(mask, unsigned(value) | 4u));
    out[6] = int(__reduce_or_sync(mask, unsigned(value)));
    out[7] = int(__reduce_xor_sync(mask, unsigned(value)));
}

TEST(ConformanceWarp, ReductionsCoverTheMask) {
    DeviceArray<int> result(8 * 32);
    for (unsigned mask : {0xffffffffu, 0x00100400u, 0xfffe0001u}) {
        launch("reduce_kernel", reduce_kernel, {1, 32}, result.data(), mask);
        int sum = 0, least = INT32_MAX, most = INT32_MIN;
        unsigned least_unsigned = UINT32_MAX, most_unsigned = 0, both = ~0u, either = 0,
                 odd = 0;
        for (int lane = 0; lane < 32; ++lane) {
            if (!(mask >> lane & 1)) continue;
            const int value = (lane * 37) % 23 - 11;
            sum += value;
            least = std::min(least, value);
            most = std::max(most, value);
            least_unsigned = std::min(least_unsigned, unsigned(value));
            most_unsigned = std::max(most_unsigned, unsigned(value));
            both &= unsigned(value) | 4u;
            either |= unsigned(value);
            odd ^= unsigned(value);
        }
        const int expected[] = {
            sum,       least,       most,    int(least_unsigned), int(most_unsigned),
            int(both), int(either), int(odd)};
        const auto got = result.to_host();
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 8; ++i)
                if (mask >> lane & 1) {
                    EXPECT_EQ(got[8 * lane + i], expected[i]) << lane << ", " << i;
                }
    }
}

__global__ void syncwarp_kernel(int* result) {
    struct Smem {
        int values[64];
    };
    auto& s = gpu::shared_memory<Smem>();
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    s.values[threadIdx.x] = lane;
    __syncwarp();
    result[threadIdx.x] = s.values[32 * warp + 31 - lane];
}

TEST(ConformanceWarp, SyncwarpOrdersSharedMemoryWithinTheWarp) {
    DeviceArray<int> result(64);
    launch("syncwarp_kernel", syncwarp_kernel, {1, 64, 64 * sizeof(int)}, result.data());
    const auto got = result.to_host();
    for (int t = 0; t < 64; ++t) EXPECT_EQ(got[t], 31 - t % 32);
}

}  // namespace
}  // namespace moe::test
