#include "core/dtype.h"

#include "core/known_names.h"

namespace moe {

std::string to_string(DType dtype) {
    switch (dtype) {
        case DType::f64: return "fp64";
        case DType::f32: return "fp32";
        case DType::bf16: return "bf16";
        case DType::i64: return "int64";
        case DType::i32: return "int32";
        case DType::u8: return "uint8";
    }
    return "?";
}

DType parse_dtype(const std::string& field, const std::string& text) {
    for (DType dtype : {DType::f64, DType::f32, DType::bf16})
        if (text == to_string(dtype)) return dtype;
    reject_unknown(field, text, {"fp64", "fp32", "bf16"});
}

}  // namespace moe
