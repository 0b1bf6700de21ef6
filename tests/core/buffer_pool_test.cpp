// Memory that a caller keeps: who gets which block, and when.

#include "core/buffer_pool.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>

namespace moe::test {
namespace {

Tensor floats(std::int64_t count) {
    return Tensor::empty({count}, DType::f32);
}

TEST(BufferPool, GivesTheSameMemoryAgain) {
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    void* first = nullptr;
    {
        const Tensor a = floats(100), shared = a;
        first = a.view().bytes;
        EXPECT_NE(floats(100).view().bytes, first) << "in use";
    }
    EXPECT_EQ(pool.allocations(), 2);
    EXPECT_EQ(pool.bytes(), 800u);
    const Tensor b = floats(100), c = floats(100);
    EXPECT_TRUE(b.view().bytes == first || c.view().bytes == first);
    EXPECT_EQ(pool.allocations(), 2) << "nothing new";
    EXPECT_NE(b.view().bytes, c.view().bytes);
}

TEST(BufferPool, GivesABlockThatFitsAndNoneFarTooLarge) {
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    void* large = floats(1000).view().bytes;
    EXPECT_EQ(floats(500).view().bytes, large);
    EXPECT_NE(floats(499).view().bytes, large);
    const Tensor whole = floats(1000);  // it came back as what it is
    EXPECT_EQ(whole.view().bytes, large);
    EXPECT_EQ(pool.allocations(), 2);
}

TEST(BufferPool, KeepsLanesApart) {
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    int stream = 0;
    void* const main = floats(100).view().bytes;
    Tensor kept;
    {
        const BufferPool::Lane lane(&stream);
        kept = floats(100);
        EXPECT_NE(kept.view().bytes, main);
    }
    void* const side = kept.view().bytes;
    kept = {};  // comes back to where it was made
    EXPECT_EQ(floats(100).view().bytes, main);
    const Tensor used = floats(100);
    EXPECT_NE(floats(100).view().bytes, side);
    const BufferPool::Lane again(&stream);
    EXPECT_EQ(floats(100).view().bytes, side);
    EXPECT_EQ(pool.allocations(), 3);
}

TEST(BufferPool, IsOpenOnItsThreadWithinItsScope) {
    BufferPool outer, inner;
    EXPECT_EQ((floats(1), outer.allocations()), 0);
    const BufferPool::Scope scope(outer);
    {
        const BufferPool::Scope nested(inner);
        floats(1);
    }
    EXPECT_EQ(outer.allocations(), 0);
    EXPECT_EQ(inner.allocations(), 1);
    floats(1);
    std::thread([] { floats(1000); }).join();
    EXPECT_EQ(outer.allocations(), 1);
}

TEST(BufferPool, MayGoBeforeItsTensors) {
    std::optional<BufferPool> pool(std::in_place);
    Tensor kept;
    {
        const BufferPool::Scope scope(*pool);
        kept = Tensor::zeros({3}, DType::f32);
    }
    pool.reset();
    EXPECT_EQ(kept.data<float>()[2], 0.0f);
}

}  // namespace
}  // namespace moe::test
