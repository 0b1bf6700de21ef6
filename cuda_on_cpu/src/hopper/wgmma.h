/// @file
/// wgmma: asynchronous products of a warpgroup, operands in shared memory. Each of the
/// four warps computes 16 of the 64 rows by itself. Rules: PTX ISA, "Asynchronous
/// Warpgroup Level Matrix Multiply-Accumulate Instructions".
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "block.h"
#include "cuda_on_cpu/hopper.h"

namespace cuda_on_cpu {

class Wgmma {
  public:
    void begin(int warps) {
        warps_.clear();
        warps_.resize(std::size_t(warps));
    }
    // Of one warp, once its 32 lanes are there
    void fence(int warp) { warps_[std::size_t(warp)].fenced = true; }
    void issue(Block& block, int warp, const std::array<WgmmaOperands, 32>& lanes,
               Site site);
    void commit(int warp);
    void wait(Block& block, int warp, unsigned groups, Site site);
    /// A Fault when products are on their way that nobody waited for.
    void check_exit(int warp) const;

  private:
    struct Product {
        std::array<float*, 32> d;
        std::array<std::array<std::uint32_t, 4>, 32> a;  ///< when A is in registers
        WgmmaOperands form;                              ///< of lane 0: what all share
        Site site;
        std::size_t sums;      ///< of the warp's accumulators in flight: which
        std::uint64_t issued;  ///< step, of a trace
    };
    /// The accumulators of products in flight. The registers hold NaN meanwhile.
    struct Sums {
        std::array<float*, 32> d;
        int n = 0, products = 0;
        std::vector<float> values;  ///< 16 rows of n
    };
    struct Warp {
        bool fenced = false;
        int issued = 0;  ///< products since the last commit
        std::vector<Product> open;
        std::deque<std::vector<Product>> groups;
        std::vector<Sums> sums;
        Site site;
    };
    void perform(Block& block, int warp, const Product& product, float* sums) const;
    std::size_t take_sums(Warp& warp, const Product& product);

    std::vector<Warp> warps_;
};

}  // namespace cuda_on_cpu
