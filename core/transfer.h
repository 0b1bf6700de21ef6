/// @file
/// Copies and casts between memory spaces and element types: the only place where either
/// happens, because components that differ in them meet only in MoELayer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace moe {

/// What a memory space must be able to do.
struct MemoryFunctions {
    void* (*allocate)(std::size_t bytes) =
        nullptr;  ///< aligned to 64 bytes; throws on failure
    void (*release)(void* bytes) = nullptr;
    void (*fill)(void* bytes, int value, std::size_t count) = nullptr;
    /// Copies between this space and the host, or within this space. Returns when done.
    void (*copy)(void* target, const void* source, std::size_t bytes) = nullptr;
    /// (outer, rows, columns) of elements of so many bytes into (outer, columns, rows),
    /// both in this space.
    void (*transpose)(void* target, const void* source, std::int64_t outer,
                      std::int64_t rows, std::int64_t columns,
                      std::int64_t bytes) = nullptr;
    /// Told by how many bytes what tensors of this space use changes; null: nobody is.
    void (*count)(std::int64_t change) = nullptr;
};

/// Makes a space known; the host is known from the start.
void register_memory_space(MemorySpace space, const MemoryFunctions& functions);

/// Throws InternalError for a space that nobody registered.
const MemoryFunctions& memory_functions(MemorySpace space);

/// Tells the C library to keep freed memory instead of returning it to the system. For
/// programs to call once at their start: a layer frees and takes the same large tensors
/// again and again, and fresh pages cost more than some of its steps (glibc; elsewhere
/// nothing happens).
void keep_freed_memory();

/// Copies elements between two arrays of one shape and dtype, whatever their spaces.
void copy(const TensorView& target, const TensorView& source);

/// A (R, C) u8 tensor as (C, R), in the same memory space.
Tensor transpose(const Tensor& source);

/// The elements in another order: read as (outer, rows, columns, …) they become (outer,
/// columns, rows, …). Shape and memory space stay.
Tensor swap_blocks(const Tensor& source, std::int64_t outer, std::int64_t rows,
                   std::int64_t columns);

/// The tensor as a component at `target` wants it: the same tensor where nothing differs,
/// otherwise a copy in that memory space, floating-point elements cast to that dtype
/// (fp64 to bf16 rounds once; integers keep their type). An undefined tensor stays
/// undefined.
Tensor transfer(const Tensor& source, const Placement& target);

/// Like the above for memory that somebody else owns; always copies.
Tensor transfer(const TensorView& source, const Placement& target);

/// Host values as doubles, in order: for printing, comparing and drawing.
std::vector<double> to_doubles(const TensorView& source);

}  // namespace moe
