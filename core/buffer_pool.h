/// @file
/// Memory that a caller keeps from one call of a layer to the next.
#pragma once

#include <cstdint>
#include <memory>

#include "core/tensor.h"

namespace moe {

/// Tensors made while a Scope of the pool is open, on its thread, take their memory from
/// the pool, and give it back when the last of those who share them goes. The first call
/// of a layer allocates what it needs; later ones with the same shapes allocate nothing.
/// A tensor may outlive the pool.
///
/// TUTORIAL: cudaFree() waits for the device, and cudaMalloc() may; a caller that
/// launches ahead must do neither. Memory that a kernel still reads may be given to a
/// later kernel of the same stream, which runs after it, but not to one of another
/// stream: see Lane. Work of several streams has to have met before its tensors go. A
/// CUDA graph goes on using what its capture took and gave back: it needs a pool of its
/// own, which lives as long.
class BufferPool {
  public:
    BufferPool();
    ~BufferPool();
    BufferPool(const BufferPool&) = delete;
    BufferPool& operator=(const BufferPool&) = delete;

    /// Opens the pool for this thread; scopes nest.
    class Scope {
      public:
        explicit Scope(BufferPool& pool);
        ~Scope();
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        BufferPool* outer_;
    };

    /// While it lives, this thread takes from the pool only what came back of tensors
    /// that were made in the same lane, one for each stream that runs beside others.
    /// Source: c10::cuda::CUDACachingAllocator, whose free blocks belong to streams.
    class Lane {
      public:
        /// @param stream  null: that of everybody else
        explicit Lane(const void* stream);
        ~Lane();
        Lane(const Lane&) = delete;
        Lane& operator=(const Lane&) = delete;

      private:
        const void* outer_;
    };

    /// How often it had to ask the memory spaces for more.
    std::int64_t allocations() const;
    /// What it has from them, in use or not.
    std::size_t bytes() const;

    /// Memory from the pool of the innermost scope, or, without one, from the memory
    /// space itself.
    static std::shared_ptr<void> allocate(std::size_t bytes, MemorySpace space);

  private:
    struct Blocks;
    std::shared_ptr<Blocks> blocks_;
    static thread_local BufferPool* current_;
    static thread_local const void* lane_;
};

/// Bytes of all tensors that exist, in any memory space, each memory once however many
/// share it. What pools hold in reserve is not among them.
std::int64_t tensor_bytes();

/// The most that tensor_bytes() was since reset_peak_tensor_bytes().
std::int64_t peak_tensor_bytes();

/// The peak starts again from what there is now.
void reset_peak_tensor_bytes();

}  // namespace moe
