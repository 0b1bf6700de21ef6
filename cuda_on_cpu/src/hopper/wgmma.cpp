// wgmma.cpp: products of a warpgroup, warp by warp.

#include "hopper/wgmma.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "cuda_on_cpu/observe_instructions.h"
#include "hopper/accumulation.h"
#include "hopper/descriptor.h"
#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {
namespace {

constexpr int kDepth = 16, kRows = 16;  // of one warp's part of one instruction
constexpr int kMostColumns = 256;

/// Which accumulator a lane holds in d[i]: PTX ISA, "Register Fragments and Shared Memory
/// Matrix Layouts: m64nNk16".
int row_of(int lane, int i) {
    return lane / 4 + 8 * (i / 2 % 2);
}
int column_of(int lane, int i) {
    return i / 4 * 8 + 2 * (lane % 4) + i % 2;
}

float widen_bf16(const std::byte* element) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, element, 2);
    return std::bit_cast<float>(std::uint32_t{bits} << 16);
}

/// Calls `use(line, depth, address)` for 8 elements at a time: `lines` rows of A or
/// columns of B from `first` on, all 16 deep. Elements follow each other in memory along
/// the depth, or, transposed, along the lines.
template <typename Use>
void for_each_piece(const Block& block, const MatrixDescriptor& tile, bool transposed,
                    int first, int lines, Use use) {
    const auto address = [&](int line, int chunk) {
        return block.arena() +
               swizzled(tile.piece(!transposed, line, chunk), tile.swizzle);
    };
    if (!transposed) {
        for (int line = 0; line < lines; ++line)
            for (int chunk = 0; chunk < 2; ++chunk)
                use(line, 8 * chunk, address(first + line, chunk));
    } else {
        for (int depth = 0; depth < kDepth; ++depth)
            for (int chunk = 0; chunk < lines / 8; ++chunk)
                use(8 * chunk, depth, address(depth, first / 8 + chunk));
    }
}

/// What a descriptor must be for hardware to do what the kernel means.
void check_tile(Block& block, std::uint64_t bits, bool transposed, int first, int lines,
                const char* operand, Site site) {
    const MatrixDescriptor tile(bits);
    const std::string name = std::string("wgmma: descriptor of ") + operand + ": ";
    if (!tile.valid) throw Fault{name + "a bit is set that has no meaning", site};
    if (tile.base_offset != 0)
        throw Fault{name + "base offset = " + std::to_string(tile.base_offset) +
                        ": not modelled by the executor, must be 0: tiles are aligned to "
                        "8 rows of their swizzle",
                    site};
    const std::uint32_t span = swizzle_span(tile.swizzle);
    const bool plain_mn = transposed && tile.swizzle == Swizzle::none;
    const std::uint32_t stride = plain_mn ? tile.leading : tile.stride;
    if (stride < 8 * span && (transposed || lines > 8))
        throw Fault{name + (plain_mn ? "leading" : "stride") + " = " +
                        std::to_string(stride) + ": 8 lines of " + std::to_string(span) +
                        " bytes need " + std::to_string(8 * span),
                    site};
    const std::size_t smem = block.launch().smem;
    const AsyncProxy& proxy = block.hopper().proxy;
    const char* what = *operand == 'A' ? "wgmma, operand A" : "wgmma, operand B";
    for_each_piece(
        block, tile, transposed, first, lines, [&](int, int, const std::byte* address) {
            const auto position = std::size_t(address - block.arena());
            if (position + 16 > smem)
                throw Fault{name + "it reaches " + shared_offset(block, address) +
                                ", past the " + std::to_string(smem) +
                                " bytes of the launch's shared memory",
                            site};
            proxy.check_read(what, position, 16, site);
            proxy.check_swizzle(what, position, tile.swizzle, site);
        });
}

/// What the warp reads and computes, for the observed build.
void tell(const Block& block, const WgmmaOperands& form, int first_row, Site site) {
    const auto read = [&](int, int, const std::byte* piece) {
        observe::async_read(piece, 16, site);
    };
    if (form.a == nullptr)
        for_each_piece(block, MatrixDescriptor(form.a_descriptor), form.a_transposed,
                       first_row, kRows, read);
    for_each_piece(block, MatrixDescriptor(form.b_descriptor), form.b_transposed, 0,
                   form.n, read);
    observe::mma_flops(2 * kRows * kDepth * std::uint64_t(form.n), site);
}

}  // namespace

void Wgmma::issue(Block& block, int index, const std::array<WgmmaOperands, 32>& lanes,
                  Site site) {
    Warp& warp = warps_[std::size_t(index)];
    const WgmmaOperands& form = lanes[0];
    if (form.n < 8 || form.n > kMostColumns || form.n % 8 != 0)
        throw Fault{"wgmma: N = " + std::to_string(form.n) +
                        ": must be a multiple of 8 up to 256",
                    site};
    for (int lane = 1; lane < kWarpSize; ++lane)
        if (lanes[lane].a_descriptor != form.a_descriptor ||
            lanes[lane].b_descriptor != form.b_descriptor ||
            lanes[lane].accumulate != form.accumulate)
            throw Fault{"wgmma: lane " + std::to_string(lane) +
                            " brings another descriptor or scale-d than lane 0: all "
                            "lanes of a warp must agree",
                        site};
    if (!warp.fenced)
        throw Fault{
            "wgmma: wgmma_fence must come before the first product and again "
            "after each wgmma_wait: it orders the registers",
            site};
    const int first_row = 16 * (index % 4);
    if (form.a == nullptr)
        check_tile(block, form.a_descriptor, form.a_transposed, first_row, kRows, "A",
                   site);
    check_tile(block, form.b_descriptor, form.b_transposed, 0, form.n, "B", site);

    if constexpr (observe::kObserved) tell(block, form, first_row, site);
    Product product{{}, {}, form, site, 0, trace::is_on() ? trace::now(block) : 0};
    for (int lane = 0; lane < kWarpSize; ++lane) {
        product.d[lane] = lanes[lane].d;
        if (form.a != nullptr)
            std::copy(lanes[lane].a, lanes[lane].a + 4, product.a[lane].begin());
    }
    ++warp.issued;
    warp.site = site;
    if (block.launch().asynchrony.deferred) {
        product.sums = take_sums(warp, product);
        warp.open.push_back(product);
        return;
    }
    float sums[kRows * kMostColumns];
    for (int lane = 0; lane < kWarpSize; ++lane)
        for (int i = 0; i < form.n / 2; ++i)
            sums[row_of(lane, i) * form.n + column_of(lane, i)] = product.d[lane][i];
    perform(block, index, product, sums);
    for (int lane = 0; lane < kWarpSize; ++lane)
        for (int i = 0; i < form.n / 2; ++i)
            product.d[lane][i] = sums[row_of(lane, i) * form.n + column_of(lane, i)];
}

/// The accumulators leave the registers, in which nobody may read them before the wait.
std::size_t Wgmma::take_sums(Warp& warp, const Product& product) {
    for (std::size_t s = 0; s < warp.sums.size(); ++s)
        if (warp.sums[s].products > 0 && warp.sums[s].d == product.d) {
            ++warp.sums[s].products;
            return s;
        }
    const int n = product.form.n;
    Sums sums{product.d, n, 1, std::vector<float>(std::size_t(kRows * n))};
    for (int lane = 0; lane < kWarpSize; ++lane)
        for (int i = 0; i < n / 2; ++i) {
            float& own = product.d[lane][i];
            sums.values[std::size_t(row_of(lane, i) * n + column_of(lane, i))] = own;
            own = std::numeric_limits<float>::quiet_NaN();
        }
    for (std::size_t s = 0; s < warp.sums.size(); ++s)
        if (warp.sums[s].products == 0) {
            warp.sums[s] = std::move(sums);
            return s;
        }
    warp.sums.push_back(std::move(sums));
    return warp.sums.size() - 1;
}

/// sums (16, n) = [sums +] A (16, 16) B (16, n)
void Wgmma::perform(Block& block, int index, const Product& product, float* sums) const {
    const WgmmaOperands& form = product.form;
    const int n = form.n;
    float a[kRows][kDepth], b[kDepth][kMostColumns];
    const auto read = [&](std::uint64_t bits, bool transposed, int first, int lines,
                          auto&& put) {
        for_each_piece(block, MatrixDescriptor(bits), transposed, first, lines,
                       [&](int line, int depth, const std::byte* piece) {
                           for (int e = 0; e < 8; ++e)
                               put(line + (transposed ? e : 0),
                                   depth + (transposed ? 0 : e),
                                   widen_bf16(piece + 2 * e));
                       });
    };
    if (form.a == nullptr) {
        read(form.a_descriptor, form.a_transposed, 16 * (index % 4), kRows,
             [&](int row, int depth, float value) { a[row][depth] = value; });
    } else {
        for (int lane = 0; lane < kWarpSize; ++lane)
            for (int i = 0; i < 4; ++i)
                for (int half = 0; half < 2; ++half)
                    a[lane / 4 + 8 * (i & 1)][2 * (lane % 4) + half + 8 * (i / 2)] =
                        std::bit_cast<float>(product.a[lane][i] >> (16 * half) << 16);
    }
    read(form.b_descriptor, form.b_transposed, 0, n,
         [&](int column, int depth, float value) { b[depth][column] = value; });

    if (trace::is_on())
        trace::lasted(block,
                      {trace::Row::products, index, "m64n" + std::to_string(n) + "k16",
                       product.issued, product.site});
    if (!form.accumulate) std::fill(sums, sums + kRows * n, 0.0f);
    const Accumulation& unit = options().accumulation;
    for (int row = 0; row < kRows; ++row) {
        float* const line = sums + row * n;
        if (unit.products == 1) {
            // 8 columns at a time: the compiler then keeps them in one register.
            for (int first = 0; first < n; first += 8) {
                float eight[8];
                std::copy(line + first, line + first + 8, eight);
                for (int k = 0; k < kDepth; ++k)
                    for (int i = 0; i < 8; ++i) eight[i] += a[row][k] * b[k][first + i];
                std::copy(eight, eight + 8, line + first);
            }
        } else {
            for (int column = 0; column < n; ++column)
                line[column] = accumulate(unit, line[column], a[row], 1, &b[0][column],
                                          kMostColumns, kDepth);
        }
    }
}

void Wgmma::commit(int index) {
    Warp& warp = warps_[std::size_t(index)];
    warp.groups.push_back(std::move(warp.open));
    warp.open.clear();
    warp.issued = 0;
}

void Wgmma::wait(Block& block, int index, unsigned groups, Site site) {
    Warp& warp = warps_[std::size_t(index)];
    if (warp.issued != 0)
        throw Fault{"wgmma_wait: the products issued at " + place(warp.site) +
                        " belong to no group: wgmma_commit must come first",
                    site};
    warp.fenced = false;
    for (; warp.groups.size() > groups; warp.groups.pop_front())
        for (const Product& product : warp.groups.front()) {
            Sums& sums = warp.sums[product.sums];
            perform(block, index, product, sums.values.data());
            if (--sums.products > 0) continue;
            for (int lane = 0; lane < kWarpSize; ++lane)
                for (int i = 0; i < sums.n / 2; ++i)
                    sums.d[lane][i] = sums.values[std::size_t(row_of(lane, i) * sums.n +
                                                              column_of(lane, i))];
        }
}

void Wgmma::check_exit(int index) const {
    const Warp& warp = warps_[std::size_t(index)];
    if (warp.issued != 0 || !warp.groups.empty())
        throw Fault{
            "a warp exits before its products were waited for: wgmma_commit and "
            "wgmma_wait must follow",
            warp.site};
}

// -------------------------------------------------------------------- the instructions
namespace {

constexpr Collective kFence{
    "wgmma_fence", true,
    [](Block& block, int warp, void* const*, Site) { block.hopper().wgmma.fence(warp); }};
constexpr Collective kProduct{
    "wgmma", true, [](Block& block, int warp, void* const* operands, Site site) {
        std::array<WgmmaOperands, 32> lanes;
        for (int lane = 0; lane < kWarpSize; ++lane)
            lanes[lane] = *static_cast<const WgmmaOperands*>(operands[lane]);
        block.hopper().wgmma.issue(block, warp, lanes, site);
    }};
constexpr Collective kCommit{"wgmma_commit", true,
                             [](Block& block, int warp, void* const*, Site) {
                                 block.hopper().wgmma.commit(warp);
                             }};
constexpr Collective kWait{
    "wgmma_wait", true, [](Block& block, int warp, void* const* operands, Site site) {
        block.hopper().wgmma.wait(block, warp, *static_cast<unsigned*>(operands[0]),
                                  site);
    }};

void collective_of_warpgroup(const Collective& what, void* operand, Site site) {
    Block& block = *Block::running();
    const int group = block.current() / 128;
    if ((group + 1) * 128 <= block.count()) return block.collective(what, operand, site);
    kernel_call(site, [&](Block&) {
        throw Fault{std::string(what.name) +
                    ": a warpgroup has 128 threads, and of warpgroup " +
                    std::to_string(group) + " the block has " +
                    std::to_string(block.count() - group * 128)};
    });
}

}  // namespace

void wgmma_fence(Site site) {
    collective_of_warpgroup(kFence, nullptr, site);
}
void wgmma(const WgmmaOperands& operands, Site site) {
    collective_of_warpgroup(kProduct, const_cast<WgmmaOperands*>(&operands), site);
}
void wgmma_commit(Site site) {
    collective_of_warpgroup(kCommit, nullptr, site);
}
void wgmma_wait(unsigned groups, Site site) {
    collective_of_warpgroup(kWait, &groups, site);
}

std::uint32_t shared_address(const void* pointer, Site site) {
    return kernel_call(site, [&](Block& block) {
        return std::uint32_t(
            shared_position(block, "a matrix descriptor's start", pointer, 16, 16));
    });
}

}  // namespace cuda_on_cpu
