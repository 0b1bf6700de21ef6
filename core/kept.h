/// @file
/// What a layer keeps from its forward for its backward: the memory that training needs
/// for every layer at once.
#pragma once

#include <string>

#include "core/dtype.h"

namespace moe {

/// A tensor, or several of one shape, that a tier keeps. Logits, maps, ids and counts are
/// not told of: they are small beside these.
struct KeptTensor {
    std::string name;  ///< "h"
    int times = 1;
    std::string letters;  ///< its shape: T tokens, N rows after dispatch, H, l (ℓ, or H),
                          ///< K, F, Fs
    DType dtype = DType::f32;
};

}  // namespace moe
