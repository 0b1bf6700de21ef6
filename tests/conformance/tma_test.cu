// tma_test.cu: boxes of tensors: over every edge, with every swizzle, in and out.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor_map.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

struct BoxSmem {
    alignas(1024) unsigned char bytes[16 * 1024];
    std::uint64_t barrier;
};

/// The shared-memory image of one box, byte for byte, bytes that the box leaves alone as
/// `filler`.
template <int Rank>
__global__ void image_kernel(unsigned char* image, std::uint32_t image_bytes,
                             std::uint32_t box_bytes, unsigned char filler,
                             const __grid_constant__ CUtensorMap map, int x, int y,
                             int z) {
    auto& s = gpu::shared_memory<BoxSmem>();
    const std::uint32_t t = threadIdx.x;
    for (std::uint32_t i = t; i < image_bytes; i += blockDim.x) s.bytes[i] = filler;
    if (t == 0) {
        ptx::prefetch_tensormap(&map);
        ptx::mbarrier_init(&s.barrier, 1);
    }
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {
        ptx::mbarrier_arrive_expect_tx(&s.barrier, box_bytes);
        if constexpr (Rank == 1) ptx::tma_load_1d(s.bytes, &map, &s.barrier, x);
        if constexpr (Rank == 2) ptx::tma_load_2d(s.bytes, &map, &s.barrier, x, y);
        if constexpr (Rank == 3) ptx::tma_load_3d(s.bytes, &map, &s.barrier, x, y, z);
    }
    ptx::mbarrier_wait(&s.barrier, 0);
    for (std::uint32_t i = t; i < image_bytes; i += blockDim.x) image[i] = s.bytes[i];
}

/// A tensor of 16-bit numbers that name themselves, and a plain loop over its boxes.
struct Numbered {
    std::vector<int> sizes, box;  // innermost first; 1 where an axis is missing

    int at(int x, int y, int z) const {
        if (x < 0 || y < 0 || z < 0 || x >= sizes[0] || y >= sizes[1] || z >= sizes[2])
            return 0;
        return 1 + x + sizes[0] * (y + sizes[1] * z);
    }
    std::vector<std::uint16_t> values() const {
        std::vector<std::uint16_t> all;
        for (int z = 0; z < sizes[2]; ++z)
            for (int y = 0; y < sizes[1]; ++y)
                for (int x = 0; x < sizes[0]; ++x)
                    all.push_back(std::uint16_t(at(x, y, z)));
        return all;
    }
    /// The box at a corner as shared memory holds it: swizzle as address bits.
    std::vector<std::uint16_t> image(int x, int y, int z, int swizzle) const {
        std::vector<std::uint16_t> all(std::size_t(box[0]) * box[1] * box[2]);
        std::size_t element = 0;
        for (int k = 0; k < box[2]; ++k)
            for (int j = 0; j < box[1]; ++j)
                for (int i = 0; i < box[0]; ++i, ++element) {
                    // TUTORIAL: byte b of the box moves to b with bits 4 to 6 XORed by
                    // bits 7 to 9 (128-byte swizzle), 7 to 8 (64) or 7 (32).
                    std::size_t byte = 2 * element;
                    byte ^= (byte >> 7 & ((1u << swizzle) - 1)) << 4;
                    all[byte / 2] = std::uint16_t(at(x + i, y + j, z + k));
                }
        return all;
    }
    gpu::TensorMapShape shape(int rank, int swizzle) const {
        gpu::TensorMapShape shape;
        shape.type = CU_TENSOR_MAP_DATA_TYPE_UINT16;
        shape.sizes.assign(sizes.begin(), sizes.begin() + rank);
        shape.box.assign(box.begin(), box.begin() + rank);
        shape.swizzle = static_cast<CUtensorMapSwizzle>(swizzle);
        return shape;
    }
};

void check_loads(int rank, const Numbered& tensor, int swizzle,
                 const std::vector<std::vector<int>>& corners) {
    DeviceArray<std::uint16_t> device(tensor.values());
    const CUtensorMap map =
        gpu::make_tensor_map(device.data(), tensor.shape(rank, swizzle));
    auto* kernel = rank == 1   ? image_kernel<1>
                   : rank == 2 ? image_kernel<2>
                               : image_kernel<3>;
    for (const auto& corner : corners) {
        const auto want = tensor.image(corner[0], corner[1], corner[2], swizzle);
        const auto bytes = std::uint32_t(2 * want.size());
        DeviceArray<unsigned char> image(bytes + 64);
        launch("image_kernel", kernel, {1, 64, sizeof(BoxSmem)}, image.data(), bytes + 64,
               bytes, 0xA5, map, corner[0], corner[1], corner[2]);
        const auto got = image.to_host();
        for (std::size_t i = 0; i < want.size(); ++i)
            ASSERT_EQ(got[2 * i] | got[2 * i + 1] << 8, want[i])
                << "rank " << rank << ", swizzle " << swizzle << ", corner " << corner[0]
                << " " << corner[1] << " " << corner[2] << ", element " << i;
        for (std::size_t i = bytes; i < bytes + 64; ++i) ASSERT_EQ(got[i], 0xA5);
    }
}

TEST(ConformanceTma, BoxesOfOneToThreeAxesOverEveryEdge) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        check_loads(1, {{93, 1, 1}, {24, 1, 1}}, 0,
                    {{0, 0, 0}, {69, 0, 0}, {70, 0, 0}, {92, 0, 0}, {-5, 0, 0}});
        check_loads(2, {{40, 13, 1}, {16, 5, 1}}, 0,
                    {{0, 0, 0},
                     {8, 3, 0},
                     {-7, -2, 0},
                     {33, 11, 0},
                     {39, 12, 0},
                     {40, 0, 0},
                     {0, 13, 0},
                     {-16, 0, 0}});
        check_loads(3, {{24, 5, 4}, {8, 3, 2}}, 0,
                    {{0, 0, 0}, {5, 1, 1}, {-3, -1, -1}, {20, 4, 3}, {0, 0, 4}});
    });
}

TEST(ConformanceTma, EverySwizzlePermutesAsAddressBitsDo) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        for (int swizzle : {1, 2, 3}) {
            const int width = 8 << swizzle;  // elements of a line: 32, 64, 128 bytes
            check_loads(
                2, {{3 * width, 37, 1}, {width, 19, 1}}, swizzle,
                {{0, 0, 0}, {width - 3, 20, 0}, {-1, -1, 0}, {3 * width - 1, 36, 0}});
            check_loads(3, {{width, 9, 3}, {width, 7, 2}}, swizzle,
                        {{0, 0, 0}, {2, 4, 2}, {-2, -3, -1}});
        }
    });
}

TEST(ConformanceTma, TheWholeSwizzledImageOfEightLinesIsAPermutation) {
    MOE_NEEDS_HOPPER;
    // 1024 bytes: each 16-byte piece c of line r lies at piece c ^ r of the line.
    const Numbered tensor{{64, 8, 1}, {64, 8, 1}};
    DeviceArray<std::uint16_t> device(tensor.values());
    const CUtensorMap map = gpu::make_tensor_map(device.data(), tensor.shape(2, 3));
    in_every_mode([&] {
        DeviceArray<unsigned char> image(1024);
        launch("image_kernel", image_kernel<2>, {1, 32, sizeof(BoxSmem)}, image.data(),
               1024, 1024, 0, map, 0, 0, 0);
        const auto got = image.to_host();
        for (int r = 0; r < 8; ++r)
            for (int c = 0; c < 8; ++c) {
                const int at = 128 * r + 16 * (c ^ r);
                ASSERT_EQ(got[at] | got[at + 1] << 8, tensor.at(8 * c, r, 0));
            }
    });
}

// -------------------------------------------------------------------------------- stores
/// Stores a box of numbers 1, 2, …, or adds it.
template <int Rank, bool adds, typename T>
__global__ void store_kernel(const __grid_constant__ CUtensorMap map, int elements,
                             int swizzle, int x, int y, int z) {
    auto& s = gpu::shared_memory<BoxSmem>();
    for (int i = int(threadIdx.x); i < elements; i += int(blockDim.x)) {
        unsigned byte = unsigned(i) * unsigned(sizeof(T));
        byte ^= (byte >> 7 & ((1u << swizzle) - 1)) << 4;
        *reinterpret_cast<T*>(s.bytes + byte) = T(float(i + 1));
    }
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        if constexpr (Rank == 1)
            adds ? ptx::tma_reduce_add_1d(&map, s.bytes, x)
                 : ptx::tma_store_1d(&map, s.bytes, x);
        if constexpr (Rank == 2)
            adds ? ptx::tma_reduce_add_2d(&map, s.bytes, x, y)
                 : ptx::tma_store_2d(&map, s.bytes, x, y);
        if constexpr (Rank == 3)
            adds ? ptx::tma_reduce_add_3d(&map, s.bytes, x, y, z)
                 : ptx::tma_store_3d(&map, s.bytes, x, y, z);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}

template <int Rank, bool adds, typename T>
void check_store(CUtensorMapDataType type, const Numbered& tensor, int swizzle,
                 std::vector<int> corner) {
    std::size_t count = 1;
    for (int size : tensor.sizes) count *= std::size_t(size);
    std::vector<T> before(count, T(3.0f));
    DeviceArray<T> device(before);
    gpu::TensorMapShape shape = tensor.shape(Rank, swizzle);
    shape.type = type;
    const int blocks = adds ? 3 : 1;
    launch("store_kernel", store_kernel<Rank, adds, T>,
           {unsigned(blocks), 64, sizeof(BoxSmem)},
           gpu::make_tensor_map(device.data(), shape),
           tensor.box[0] * tensor.box[1] * tensor.box[2], swizzle, corner[0], corner[1],
           corner[2]);
    const auto got = device.to_host();
    std::size_t element = 0;
    for (int z = 0; z < tensor.sizes[2]; ++z)
        for (int y = 0; y < tensor.sizes[1]; ++y)
            for (int x = 0; x < tensor.sizes[0]; ++x, ++element) {
                const int i = x - corner[0], j = y - corner[1], k = z - corner[2];
                const bool inside = i >= 0 && j >= 0 && k >= 0 && i < tensor.box[0] &&
                                    j < tensor.box[1] && k < tensor.box[2];
                const int number = 1 + i + tensor.box[0] * (j + tensor.box[1] * k);
                const float want = !inside ? 3.0f
                                   : adds  ? 3.0f + float(blocks * number)
                                           : float(number);
                ASSERT_EQ(float(got[element]), want) << x << " " << y << " " << z;
            }
}

TEST(ConformanceTma, StoresAndSumsSkipWhatLiesOutside) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        check_store<1, false, float>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                     {{21, 1, 1}, {8, 1, 1}}, 0, {17, 0, 0});
        check_store<2, false, float>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                     {{20, 9, 1}, {8, 5, 1}}, 0, {-2, 6, 0});
        check_store<2, false, __nv_bfloat16>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                             {{72, 5, 1}, {64, 3, 1}}, 3, {10, -1, 0});
        check_store<3, false, float>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                     {{8, 5, 3}, {4, 3, 2}}, 0, {6, 1, 2});
        check_store<1, true, int>(CU_TENSOR_MAP_DATA_TYPE_INT32, {{21, 1, 1}, {8, 1, 1}},
                                  0, {-3, 0, 0});
        check_store<2, true, float>(CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                    {{20, 9, 1}, {8, 5, 1}}, 1, {15, 7, 0});
        check_store<3, true, __nv_bfloat16>(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                            {{16, 3, 3}, {16, 2, 2}}, 1, {-1, 2, 1});
    });
}

TEST(ConformanceTma, MapsAgainstTheRulesAreRefused) {
    MOE_NEEDS_HOPPER;
    DeviceArray<std::uint16_t> device(64 * 64);
    const auto refused = [&](const std::uint16_t* base, gpu::TensorMapShape shape) {
        shape.type = CU_TENSOR_MAP_DATA_TYPE_UINT16;
        EXPECT_THROW(gpu::make_tensor_map(base, shape), gpu::DeviceError);
    };
    const auto* base = device.data();
    refused(base + 1, {{}, {64, 64}, {8, 8}});     // base not at a multiple of 16
    refused(base, {{}, {64, 64}, {8, 257}});       // box too high
    refused(base, {{}, {64, 64}, {4, 8}});         // inner box of 8 bytes
    refused(base, {{}, {60, 64}, {8, 8}, {120}});  // row stride no multiple of 16
    refused(base, {{}, {64, 64}, {0, 8}});         // empty box
    refused(base, {{}, {64, 64}, {64, 8}, {}, CU_TENSOR_MAP_SWIZZLE_64B});  // too wide
    refused(base, {{}, {64, 64}, {8}});  // one extent missing
}

}  // namespace
}  // namespace moe::test
