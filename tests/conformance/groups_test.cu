// groups_test.cu: cooperative groups, the block and its tiles. The same file runs on the
// executor and on a GPU.

#include <cooperative_groups.h>
#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

namespace cg = cooperative_groups;

struct RankSmem {
    unsigned ranks[1024];
};

/// Each thread reads, behind a barrier, what its mirror image wrote.
__global__ void block_kernel(int* result) {
    const cg::thread_block block = cg::this_thread_block();
    RankSmem& s = gpu::shared_memory<RankSmem>();
    const unsigned rank = block.thread_rank();
    s.ranks[rank] = rank + 1000 * block.group_index().x;
    block.sync();
    result[block.group_index().x * block.size() + rank] =
        int(s.ranks[block.num_threads() - 1 - rank]);
}

TEST(ConformanceGroups, ABlockSyncsAndNumbersItsThreads) {
    constexpr int kThreads = 5 * 3 * 7, kBlocks = 2;
    DeviceArray<int> result(kThreads * kBlocks);
    gpu::launch("block_kernel", block_kernel, {kBlocks, dim3(5, 3, 7), sizeof(RankSmem)},
                result.data());
    const std::vector<int> got = result.to_host();
    for (int i = 0; i < kThreads * kBlocks; ++i)
        EXPECT_EQ(got[i], kThreads - 1 - i % kThreads + 1000 * (i / kThreads)) << i;
}

/// Sums the ranks of a tile by halving, and asks who is odd.
template <unsigned Size>
__global__ void tile_kernel(int* sums, int* odd, int* first, int* tiles) {
    const cg::thread_block block = cg::this_thread_block();
    const auto tile = cg::tiled_partition<Size>(block);
    const int i = int(block.thread_rank());
    int sum = i;
    for (unsigned half = Size / 2; half > 0; half /= 2) sum += tile.shfl_xor(sum, half);
    sums[i] = sum;
    odd[i] = int(tile.ballot(tile.thread_rank() % 2));
    first[i] = tile.shfl(i, 0);
    tile.sync();
    const bool alike = tile.all(tile.shfl(i, 0) == i - int(tile.thread_rank()));
    tiles[i] = alike && tile.any(tile.thread_rank() == Size - 1)
                   ? int(tile.meta_group_rank() + 100 * tile.meta_group_size())
                   : -1;
}

template <unsigned Size>
void expect_tiles() {
    constexpr int kThreads = 96;
    DeviceArray<int> sums(kThreads), odd(kThreads), first(kThreads), tiles(kThreads);
    gpu::launch("tile_kernel", tile_kernel<Size>, {1, dim3(48, 2)}, sums.data(),
                odd.data(), first.data(), tiles.data());
    const auto s = sums.to_host(), o = odd.to_host(), f = first.to_host();
    const auto t = tiles.to_host();
    for (int i = 0; i < kThreads; ++i) {
        const int size = int(Size), begin = i / size * size;
        EXPECT_EQ(s[i], size * begin + size * (size - 1) / 2) << Size << " " << i;
        EXPECT_EQ(unsigned(o[i]), 0xAAAAAAAAu & ((std::uint64_t{1} << Size) - 1));
        EXPECT_EQ(f[i], begin);
        EXPECT_EQ(t[i], i / size + 100 * (kThreads / size));
    }
}

TEST(ConformanceGroups, TilesShuffleAndVoteAmongThemselves) {
    expect_tiles<1>();
    expect_tiles<2>();
    expect_tiles<8>();
    expect_tiles<16>();
    expect_tiles<32>();
}

}  // namespace
}  // namespace moe::test
