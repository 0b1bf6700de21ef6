/// @file
/// One access of one thread, as the compiler's call brings it.
#pragma once

#include <cstdint>
#include <string>

#include "vector_types.h"

namespace cuda_on_cpu::observe {

enum class Kind : std::uint8_t { read, write, atomic, atomic_read, atomic_write };

inline bool writes(Kind kind) {
    return kind == Kind::write || kind == Kind::atomic || kind == Kind::atomic_write;
}
inline bool reads(Kind kind) {
    return kind == Kind::read || kind == Kind::atomic || kind == Kind::atomic_read;
}
inline const char* name_of(Kind kind) {
    return kind == Kind::read ? "read" : kind == Kind::write ? "write" : "atomic access";
}
inline bool is_atomic(Kind kind) {
    return kind >= Kind::atomic;
}

/// One access of one thread.
struct Record {
    std::uint64_t place;  ///< address in 48 bits, size in 8, kind in 8
    std::uint64_t pc;     ///< where the call returns to

    static Record of(std::uint64_t address, unsigned size, Kind kind, std::uint64_t pc) {
        return {address | std::uint64_t(size) << 48 | std::uint64_t(kind) << 56, pc};
    }
    std::uint64_t address() const { return place & 0xffff'ffff'ffffu; }
    unsigned size() const { return place >> 48 & 0xff; }
    Kind kind() const { return Kind(place >> 56); }
};

/// "block (0,1,0)"
std::string block_name(const dim3& grid, std::int64_t block_index);
/// "block (0,1,0), thread (33,0,0)"
std::string thread_name(const dim3& grid, const dim3& block, std::int64_t block_index,
                        int thread);

}  // namespace cuda_on_cpu::observe
