// copy_test.cu: cp.async and bulk copies of bytes.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <numeric>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

template <typename T>
std::vector<T> counting(std::size_t count) {
    std::vector<T> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = T(i % 251 + 1);
    return values;
}

// -------------------------------------------------------------------------- cp.async
struct PiecesSmem {
    alignas(16) unsigned char bytes[64 * 16];
};

/// Thread t copies `kept` of Bytes bytes; the rest becomes zero.
template <int Bytes>
__global__ void pieces_kernel(unsigned char* result, const unsigned char* source,
                              std::uint32_t kept) {
    auto& s = gpu::shared_memory<PiecesSmem>();
    const int t = int(threadIdx.x);
    ptx::cp_async<Bytes>(s.bytes + t * Bytes, source + t * Bytes, kept);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    const int other = int(blockDim.x) - 1 - t;
    for (int i = 0; i < Bytes; ++i)
        result[other * Bytes + i] = s.bytes[other * Bytes + i];
}

TEST(ConformanceCopy, PiecesOf4And8And16BytesAndZerosBeyondTheSource) {
    const auto source = counting<unsigned char>(64 * 16);
    in_every_mode([&] {
        DeviceArray<unsigned char> device(source);
        const auto check = [&](auto kernel, int bytes) {
            for (int kept : {bytes, bytes - 1, 1, 0}) {
                DeviceArray<unsigned char> result(std::size_t(64) * bytes);
                launch("pieces_kernel", kernel, {1, 64, sizeof(PiecesSmem)},
                       result.data(), device.data(), kept);
                const auto got = result.to_host();
                for (int i = 0; i < 64 * bytes; ++i)
                    ASSERT_EQ(got[i], i % bytes < kept ? source[i] : 0)
                        << bytes << " " << kept << " " << i;
            }
        };
        check(pieces_kernel<4>, 4);
        check(pieces_kernel<8>, 8);
        check(pieces_kernel<16>, 16);
    });
}

struct GroupsSmem {
    int values[4][32];
};

/// Four groups in flight, taken one by one.
__global__ void groups_kernel(int* result, const int* source) {
    auto& s = gpu::shared_memory<GroupsSmem>();
    const int t = int(threadIdx.x);
    for (int group = 0; group < 4; ++group) {
        ptx::cp_async<4>(&s.values[group][t], source + group * 32 + t);
        ptx::cp_async_commit();
    }
    const auto take = [&](int group) {
        result[group * 32 + t] = s.values[group][t] * (group + 1);
    };
    ptx::cp_async_wait<3>();
    take(0);
    ptx::cp_async_wait<1>();
    take(1);
    take(2);
    ptx::cp_async_wait<0>();
    take(3);
}

TEST(ConformanceCopy, GroupsCompleteInTheirOrder) {
    std::vector<int> source(128);
    std::iota(source.begin(), source.end(), 1);
    in_every_mode([&] {
        DeviceArray<int> device(source), result(128);
        launch("groups_kernel", groups_kernel, {1, 32, sizeof(GroupsSmem)}, result.data(),
               device.data());
        const auto got = result.to_host();
        for (int i = 0; i < 128; ++i) EXPECT_EQ(got[i], source[i] * (i / 32 + 1));
    });
}

struct ArriveSmem {
    std::uint64_t barrier;
    alignas(16) int values[96];
};

/// Warps copy, and the mbarrier completes when all copies have arrived.
template <bool counted>
__global__ void arrive_kernel(int* result, const int* source) {
    auto& s = gpu::shared_memory<ArriveSmem>();
    const int t = int(threadIdx.x), threads = int(blockDim.x);
    if (t == 0) {
        ptx::mbarrier_init(&s.barrier, threads);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::cp_async<4>(&s.values[t], source + t);
    if constexpr (counted) {
        ptx::cp_async_mbarrier_arrive_noinc(&s.barrier);
    } else {
        ptx::cp_async_mbarrier_arrive(&s.barrier);
        ptx::mbarrier_arrive(&s.barrier);
    }
    ptx::mbarrier_wait(&s.barrier, 0);
    result[t] = s.values[threads - 1 - t];
}

TEST(ConformanceCopy, AnMbarrierCompletesWhenTheCopiesHaveArrived) {
    MOE_NEEDS_HOPPER;
    const auto source = counting<int>(96);
    in_every_mode([&] {
        for (auto kernel : {arrive_kernel<false>, arrive_kernel<true>}) {
            DeviceArray<int> device(source), result(96);
            launch("arrive_kernel", kernel, {1, 96, sizeof(ArriveSmem)}, result.data(),
                   device.data());
            const auto got = result.to_host();
            for (int t = 0; t < 96; ++t) EXPECT_EQ(got[t], source[95 - t]);
        }
    });
}

// -------------------------------------------------------------------- bulk copies
struct LinesSmem {
    std::uint64_t barrier;
    alignas(128) unsigned char bytes[4096];
};

/// `bytes` in, each plus 1, and out again.
__global__ void lines_kernel(unsigned char* target, const unsigned char* source,
                             std::uint32_t bytes) {
    auto& s = gpu::shared_memory<LinesSmem>();
    const int t = int(threadIdx.x);
    if (t == 0) {
        ptx::mbarrier_init(&s.barrier, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (t == 0) {
        ptx::mbarrier_arrive_expect_tx(&s.barrier, bytes);
        ptx::bulk_load(s.bytes, source, bytes / 32 * 16, &s.barrier);
        ptx::bulk_load(s.bytes + bytes / 32 * 16, source + bytes / 32 * 16,
                       bytes - bytes / 32 * 16, &s.barrier);
    }
    ptx::mbarrier_wait(&s.barrier, 0);
    for (std::uint32_t i = t; i < bytes; i += blockDim.x) s.bytes[i] += 1;
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        ptx::bulk_store(target, s.bytes, bytes);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

TEST(ConformanceCopy, LinesOfBytesGoInAndOut) {
    MOE_NEEDS_HOPPER;
    const auto source = counting<unsigned char>(4096);
    in_every_mode([&] {
        for (int bytes : {32, 48, 1040, 4096}) {
            DeviceArray<unsigned char> device(source), target(source);
            launch("lines_kernel", lines_kernel, {1, 96, sizeof(LinesSmem)},
                   target.data(), device.data(), bytes);
            const auto got = target.to_host();
            for (int i = 0; i < 4096; ++i)
                ASSERT_EQ(got[i], source[i] + (i < bytes ? 1 : 0)) << bytes << " " << i;
        }
    });
}

struct SumsSmem {
    alignas(16) float floats[24];
    alignas(16) int integers[24];
    alignas(16) __nv_bfloat16 halves[24];
};

__global__ void sums_kernel(float* floats, int* integers, __nv_bfloat16* halves) {
    auto& s = gpu::shared_memory<SumsSmem>();
    const int t = int(threadIdx.x);
    if (t < 24) {
        s.floats[t] = 0.5f * float(t);
        s.integers[t] = -t;
        s.halves[t] = __float2bfloat16_rn(float(t));
    }
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 31) {
        ptx::bulk_reduce_add_f32(floats, s.floats, 96);
        ptx::bulk_reduce_add_s32(integers, s.integers, 96);
        ptx::bulk_commit();
        ptx::bulk_reduce_add_bf16(halves, s.halves, 48);
        ptx::bulk_commit();
        ptx::bulk_wait<0>();
    }
}

TEST(ConformanceCopy, BulkSumsOfSeveralBlocksLoseNothing) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        DeviceArray<float> floats(std::vector<float>(24, 1.0f));
        DeviceArray<int> integers(std::vector<int>(24, 7));
        DeviceArray<__nv_bfloat16> halves(
            std::vector<__nv_bfloat16>(24, __float2bfloat16_rn(2.0f)));
        launch("sums_kernel", sums_kernel, {5, 32, sizeof(SumsSmem)}, floats.data(),
               integers.data(), halves.data());
        for (int t = 0; t < 24; ++t) {
            EXPECT_EQ(floats.to_host()[t], 1.0f + 2.5f * float(t));
            EXPECT_EQ(integers.to_host()[t], 7 - 5 * t);
            EXPECT_EQ(float(halves.to_host()[t]), 2.0f + 5.0f * float(t));
        }
    });
}

}  // namespace
}  // namespace moe::test
