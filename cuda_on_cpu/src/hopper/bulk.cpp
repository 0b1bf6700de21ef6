// bulk.cpp: copies by the Tensor Memory Accelerator.

#include "hopper/bulk.h"

#include <cuda_bf16.h>

#include <array>
#include <cstring>

#include "cuda_on_cpu/atomics.h"
#include "cuda_on_cpu/observe_instructions.h"

#include "hopper/hopper.h"
#include "hopper/tensor_map.h"
#include "trace.h"

namespace cuda_on_cpu {
namespace {

constexpr std::uint32_t kMostRowBytes = 256 * 8;

/// A copy into shared memory, of one block: `fill` writes it.
struct Load {
    std::size_t position;
    std::uint32_t bytes;
    std::uint64_t* barrier;  ///< in the block that issues
    Site site;
    const char* name;
    std::function<void(Block& target)> fill;
    std::uint64_t issued = 0;  ///< step, of a trace
};

void land(Block& block, const Load& load, std::uint64_t* barrier) {
    Hopper& hopper = block.hopper();
    load.fill(block);
    hopper.proxy.wrote(load.position, load.bytes);
    if (trace::is_on())
        trace::lasted(block, {trace::Row::loads, 0,
                              std::string(load.name) + " to " +
                                  shared_offset(block, block.arena() + load.position) +
                                  ", " + std::to_string(load.bytes) + " bytes",
                              load.issued, load.site, shared_offset(block, barrier)});
    hopper.mbarriers.complete_bytes(block, barrier, load.bytes, load.site);
}

void issue_to(Block& block, const Load& load, std::size_t barrier_position) {
    Hopper& hopper = block.hopper();
    auto* barrier = reinterpret_cast<std::uint64_t*>(block.arena() + barrier_position);
    hopper.mbarriers.check_visible(block, barrier, load.site);
    observe::async_write(block.arena() + load.position, load.bytes, load.site);
    observe::release(barrier);
    if (!block.launch().asynchrony.deferred) return land(block, load, barrier);
    std::memset(block.arena() + load.position, 0xFF, load.bytes);
    hopper.proxy.wrote(load.position, load.bytes);
    hopper.flights.push_back(
        {load.site, [&block, load, barrier] { land(block, load, barrier); }});
}

void issue(Block& block, Load load, std::uint32_t blocks) {
    if (trace::is_on()) load.issued = trace::now(block);
    observe::async_bytes(load.bytes, load.site);
    const std::size_t barrier = shared_position(block, load.name, load.barrier, 8, 8);
    if (blocks == 0) return issue_to(block, load, barrier);
    Cluster& cluster = block.cluster();
    if (blocks >> cluster.size() != 0)
        throw Fault{std::string(load.name) + ": blocks = " + std::to_string(blocks) +
                        ": the cluster has " + std::to_string(cluster.size()),
                    load.site};
    for (int rank = 0; rank < cluster.size(); ++rank) {
        if (!(blocks >> rank & 1)) continue;
        Block& target = cluster.block(rank);
        if (target.live() == 0)
            throw Fault{std::string(load.name) + ": block " + std::to_string(rank) +
                            " of the cluster has exited",
                        load.site};
        issue_to(target, load, barrier);
    }
}

template <typename T>
void add(std::byte* target, const std::byte* source, std::uint32_t bytes) {
    for (std::uint32_t at = 0; at < bytes; at += sizeof(T)) {
        T value;
        std::memcpy(static_cast<void*>(&value), source + at, sizeof(T));
        auto* place = reinterpret_cast<T*>(target + at);
        atomic_update(place, [&](T old) { return T(old + value); });
    }
}

void apply(BulkOp op, std::byte* target, const std::byte* source, std::uint32_t bytes) {
    switch (op) {
        case BulkOp::copy: std::memcpy(target, source, bytes); break;
        case BulkOp::add_f32: add<float>(target, source, bytes); break;
        case BulkOp::add_s32: add<std::int32_t>(target, source, bytes); break;
        case BulkOp::add_bf16:
            for (std::uint32_t at = 0; at < bytes; at += 2) {
                __nv_bfloat16 value;
                std::memcpy(static_cast<void*>(&value), source + at, 2);
                auto* place = reinterpret_cast<__nv_bfloat16*>(target + at);
                atomic_update(place, [&](__nv_bfloat16 old) {
                    return __float2bfloat16_rn(float(old) + float(value));
                });
            }
    }
}

/// The row at `offset` of a box that starts at `position` of shared memory, in pieces of
/// 16 bytes: between shared memory and `bytes` in their order.
template <typename Piece>
void for_each_piece(const TensorMap& map, std::size_t position, const BoxRow& row,
                    Piece piece) {
    for (std::uint32_t at = 0; at < row.bytes; at += 16)
        piece(swizzled(std::uint32_t(position) + row.offset + at, map.swizzle), at);
}

struct Corner {
    std::array<int, kMaxRank> at{};
    Corner(const int* corner, int rank) { std::copy(corner, corner + rank, at.begin()); }
};

/// The whole box must lie in one allocation, as far as it exists.
void check_box(const char* name, const TensorMap& map, const Corner& corner) {
    const std::byte *first = nullptr, *end = nullptr;
    for_each_row(map, corner.at.data(), [&](const BoxRow& row) {
        if (row.length == 0) return;
        if (first == nullptr) first = row.global;
        end = row.global + row.length;
    });
    if (first != nullptr) check_global(name, first, std::size_t(end - first));
}

std::size_t box_position(Block& block, const char* name, const TensorMap& map,
                         const void* shared) {
    const std::size_t alignment =
        map.swizzle == Swizzle::none ? 128 : swizzle_span(map.swizzle) * 8;
    return shared_position(block, name, shared, map.box_bytes(), alignment);
}

void check_lines(const char* name, const void* global, std::uint32_t bytes) {
    if (bytes == 0 || bytes % 16 != 0)
        throw Fault{std::string(name) + ": size = " + std::to_string(bytes) +
                    ": must be a multiple of 16, and not 0"};
    if (reinterpret_cast<std::uintptr_t>(global) % 16 != 0)
        throw Fault{std::string(name) +
                    ": the address in global memory must be aligned to 16 bytes"};
    check_global(name, global, bytes);
}

}  // namespace

// --------------------------------------------------------------------------- the groups
void BulkGroups::issue(Block& block, Site site, std::function<void()> store) {
    Thread& thread = threads_[std::size_t(block.current())];
    if (trace::is_on())
        store = [store = std::move(store), site, &block, begin = trace::now(block)] {
            store();
            trace::lasted(block, {trace::Row::stores, 0, "store", begin, site});
        };
    if (!block.launch().asynchrony.deferred) {
        store();
        store = nullptr;
    }
    thread.open.push_back({site, std::move(store)});
}

void BulkGroups::commit(int index) {
    Thread& thread = threads_[std::size_t(index)];
    thread.groups.push_back(std::move(thread.open));
    thread.open.clear();
}

void BulkGroups::wait(int index, unsigned groups) {
    Thread& thread = threads_[std::size_t(index)];
    for (; thread.groups.size() > groups; thread.groups.pop_front())
        for (const Store& store : thread.groups.front())
            if (store.run) store.run();
}

void BulkGroups::check_exit(int index) const {
    const Thread& thread = threads_[std::size_t(index)];
    const Store* left = nullptr;
    if (!thread.open.empty()) left = &thread.open.front();
    for (const auto& group : thread.groups)
        if (left == nullptr && !group.empty()) left = &group.front();
    if (left != nullptr)
        throw Fault{
            "a thread exits before the bulk copy out of shared memory that it "
            "issued was waited for: bulk_commit and bulk_wait_read must follow",
            left->site};
}

// ---------------------------------------------------------------------------- loads
void load_bytes(Block& block, void* target, const void* source, std::uint32_t bytes,
                std::uint64_t* barrier, std::uint32_t blocks, Site site) {
    constexpr const char* kName = "bulk_load";
    check_lines(kName, source, bytes);
    observe::async_read(source, bytes, site);
    const std::size_t position = shared_position(block, kName, target, bytes, 16);
    issue(block,
          {position, bytes, barrier, site, kName,
           [=](Block& owner) { std::memcpy(owner.arena() + position, source, bytes); }},
          blocks);
}

void load_box(Block& block, void* target, const void* tensor_map, const int* corner,
              int rank, std::uint64_t* barrier, std::uint32_t blocks, Site site) {
    constexpr const char* kName = "tma_load";
    const TensorMap map = read_map(tensor_map, rank, kName);
    const Corner at(corner, rank);
    check_box(kName, map, at);
    for_each_row(map, at.at.data(), [&](const BoxRow& row) {
        observe::async_read(row.global, row.length, site);
    });
    const std::size_t position = box_position(block, kName, map, target);
    const auto fill = [map, at, position](Block& owner) {
        // TUTORIAL: what lies outside the tensor arrives as zeros, and counts as moved.
        AsyncProxy& proxy = owner.hopper().proxy;
        std::byte bytes[kMostRowBytes];
        for_each_row(map, at.at.data(), [&](const BoxRow& row) {
            std::memset(bytes, 0, row.bytes);
            if (row.length > 0) std::memcpy(bytes + row.first, row.global, row.length);
            for_each_piece(map, position, row, [&](std::uint32_t place, std::uint32_t i) {
                std::memcpy(owner.arena() + place, bytes + i, 16);
                proxy.note_swizzle(place, map.swizzle);
            });
        });
    };
    issue(block, {position, map.box_bytes(), barrier, site, kName, fill}, blocks);
}

// --------------------------------------------------------------------------- stores
void store_bytes(Block& block, void* target, const void* source, std::uint32_t bytes,
                 BulkOp op, Site site) {
    const char* name = op == BulkOp::copy ? "bulk_store" : "bulk_reduce_add";
    check_lines(name, target, bytes);
    Hopper& hopper = block.hopper();
    const std::size_t position = shared_position(block, name, source, bytes, 16);
    hopper.proxy.check_read(name, position, bytes, site);
    observe::async_read(block.arena() + position, bytes, site);
    observe::async_write(target, bytes, site);
    observe::async_bytes(bytes, site);
    hopper.bulk_groups.issue(block, site, [=, &block] {
        apply(op, static_cast<std::byte*>(target), block.arena() + position, bytes);
    });
}

void store_box(Block& block, const void* tensor_map, const int* corner, int rank,
               const void* source, BulkOp op, Site site) {
    const char* name = op == BulkOp::copy ? "tma_store" : "tma_reduce_add";
    const TensorMap map = read_map(tensor_map, rank, name);
    if (op != BulkOp::copy) switch (map.type) {
            case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: op = BulkOp::add_f32; break;
            case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: op = BulkOp::add_bf16; break;
            case CU_TENSOR_MAP_DATA_TYPE_INT32: op = BulkOp::add_s32; break;
            default:
                throw Fault{std::string(name) +
                            ": sums of this data type are not modelled by the "
                            "executor: FLOAT32, BFLOAT16 and INT32 are"};
        }
    const Corner at(corner, rank);
    check_box(name, map, at);
    Hopper& hopper = block.hopper();
    const std::size_t position = box_position(block, name, map, source);
    hopper.proxy.check_read(name, position, map.box_bytes(), site);
    observe::async_read(block.arena() + position, map.box_bytes(), site);
    for_each_row(map, at.at.data(), [&](const BoxRow& row) {
        observe::async_write(row.global, row.length, site);
    });
    observe::async_bytes(map.box_bytes(), site);
    hopper.bulk_groups.issue(block, site, [=, &block] {
        std::byte bytes[kMostRowBytes];
        for_each_row(map, at.at.data(), [&](const BoxRow& row) {
            if (row.length == 0) return;
            for_each_piece(map, position, row, [&](std::uint32_t place, std::uint32_t i) {
                std::memcpy(bytes + i, block.arena() + place, 16);
            });
            apply(op, row.global, bytes + row.first, row.length);
        });
    });
}

}  // namespace cuda_on_cpu
