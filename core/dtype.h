/// @file
/// Element types of tensors, with bfloat16 as plain storage.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace moe {

/// Element type of a Tensor.
enum class DType : std::uint8_t { f64, f32, bf16, i64, i32, u8 };

/// bfloat16 as storage: the upper half of an IEEE float. Arithmetic happens in float.
struct BFloat16 {
    std::uint16_t bits = 0;

    BFloat16() = default;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    explicit BFloat16(float value) {
        const auto word = std::bit_cast<std::uint32_t>(value);
        const bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
        // TUTORIAL: adding 0x7fff plus the lowest kept bit carries into the kept half
        // exactly when the dropped half is above one half, or equal to it with an odd
        // kept half: that is round-to-nearest-even without a branch.
        const std::uint32_t rounded = word + 0x7fffu + ((word >> 16) & 1u);
        bits = static_cast<std::uint16_t>((is_nan ? (word | 0x400000u) : rounded) >> 16);
    }
    explicit operator float() const {
        return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    }
};

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
    switch (dtype) {
        case DType::f64:
        case DType::i64: return 8;
        case DType::f32:
        case DType::i32: return 4;
        case DType::bf16: return 2;
        case DType::u8: return 1;
    }
    return 0;
}

/// True for f64, f32 and bf16.
constexpr bool is_floating(DType dtype) {
    return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
}

template <typename T>
struct NotAnElementType : std::false_type {};

/// The DType of a C++ element type: `dtype_of<float>` is DType::f32.
template <typename T>
inline constexpr DType dtype_of = [] {
    static_assert(NotAnElementType<T>::value, "no DType for this C++ type");
    return DType::u8;
}();
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::u8;
template <>
inline constexpr DType dtype_of<double> = DType::f64;
template <>
inline constexpr DType dtype_of<float> = DType::f32;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::i64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::i32;

/// Name on the command line and in reports: "fp64", "fp32", "bf16", "int64", "int32",
/// "uint8".
std::string to_string(DType dtype);

/// Inverse of to_string() for the floating types.
/// @param field  named in the InputError when `text` is none of fp64, fp32, bf16
DType parse_dtype(const std::string& field, const std::string& text);

}  // namespace moe
