/// @file
/// A timeline of kernel launches on the CPU executor, read from the file that
/// CUDA_ON_CPU_TRACE=FILE wrote: blocks, their rows, and what lasted or happened there.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace moe::timeline {

/// What a bar shows: a wait of a warp, or something that goes on by itself.
enum class Kind {
    data,     ///< a wait at an mbarrier that loads complete on ("full")
    space,    ///< a wait at another mbarrier ("empty")
    barrier,  ///< a wait for other threads of the block or the cluster
    wgmma,    ///< lanes of a warp meet for wgmma's instructions
    lanes,    ///< lanes of a warp meet for another of its functions
    load,
    copy,  ///< by cp.async
    store,
    product
};
inline constexpr int kKinds = 9;
inline bool is_wait(Kind kind) {
    return kind <= Kind::lanes;
}

/// Something that lasted. Steps are the scheduler's, since the first launch.
struct Bar {
    Kind kind;
    std::string what;      ///< "tma_load to +0x0, 8192 bytes"
    std::string where;     ///< "gemm.cu:51"
    std::string mbarrier;  ///< "+0x40", that it waits at or completes on; or ""
    std::int64_t begin, end;
};

/// Something that happened.
struct Mark {
    std::string what;      ///< "mbarrier +0x40: phase 1"
    std::string mbarrier;  ///< "+0x40", or "" of another barrier
    std::int64_t step;
};

enum class RowKind { warp, loads, stores, copies, products, phases };

struct Row {
    RowKind kind;
    int warp = 0;      ///< of a row of a warp, or of its products
    std::string name;  ///< "warp 3"
    std::vector<Bar> bars;
    std::vector<Mark> marks;
};

struct Block {
    std::string name;              ///< "gemm_kernel, block (0,0,0)"
    std::vector<Row> rows;         ///< warps first, in the order of Row::warp
    std::set<std::string> filled;  ///< mbarriers that loads complete on
    bool has_events() const { return !rows.empty(); }
    std::int64_t first_step() const;
    std::int64_t last_step() const;
};

struct Timeline {
    std::vector<Block> blocks;
    std::size_t shown = 0;  ///< the block to draw: one that does more than meet
    bool cut_off = false;   ///< the writer stopped before the launches did
    std::int64_t launches() const;
    std::int64_t steps() const;
    const Block& block() const { return blocks[shown]; }
};

/// The timeline in a trace. InputError naming `source` when the text is no such trace or
/// has no events.
Timeline read_timeline(const std::string& json_text, const std::string& source);

/// Shows another block, from 1. InputError naming `flag` when it is not there or has no
/// events.
void show_block(Timeline& timeline, const std::string& flag, std::int64_t number);

}  // namespace moe::timeline
