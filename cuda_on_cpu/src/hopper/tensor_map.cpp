// tensor_map.cpp: cuTensorMapEncodeTiled, with the rules that the driver checks.

#include "hopper/tensor_map.h"

#include <cstring>

#include "cuda_on_cpu/runtime_api.h"
#include "error.h"
#include "hopper/hopper.h"

namespace cuda_on_cpu {
namespace {

std::uint32_t bytes_of(CUtensorMapDataType type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
        case CU_TENSOR_MAP_DATA_TYPE_UINT64:
        case CU_TENSOR_MAP_DATA_TYPE_INT64:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
        case CU_TENSOR_MAP_DATA_TYPE_UINT32:
        case CU_TENSOR_MAP_DATA_TYPE_INT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
        case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ: return 4;
    }
    return 0;
}

CUresult refuse(CUresult result, const std::string& field, std::uint64_t value,
                const std::string& allowed) {
    set_error(result == CUDA_ERROR_NOT_SUPPORTED ? cudaErrorNotSupported
                                                 : cudaErrorInvalidValue,
              "cuTensorMapEncodeTiled: " + field + " = " + std::to_string(value) + ": " +
                  allowed);
    return result;
}
CUresult refuse(const std::string& field, std::uint64_t value,
                const std::string& allowed) {
    return refuse(CUDA_ERROR_INVALID_VALUE, field, value, "must be " + allowed);
}
CUresult not_modelled(const std::string& field, std::uint64_t value) {
    return refuse(CUDA_ERROR_NOT_SUPPORTED, field, value, "not modelled by the executor");
}

std::string at(const char* field, int axis) {
    return std::string(field) + "[" + std::to_string(axis) + "]";
}

CUresult encode(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* base,
                const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                const cuuint32_t* element_strides, CUtensorMapInterleave interleave,
                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
    if (rank < 1 || rank > 5) return refuse("tensorRank", rank, "from 1 to 5");
    if (rank > kMaxRank) return not_modelled("tensorRank", rank);
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
        return not_modelled("interleave", interleave);
    if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return not_modelled("oobFill", fill);
    if (unsigned(swizzle) > CU_TENSOR_MAP_SWIZZLE_128B)
        return not_modelled("swizzle", swizzle);
    if (reinterpret_cast<std::uintptr_t>(base) % 16 != 0)
        return refuse("globalAddress", reinterpret_cast<std::uintptr_t>(base),
                      "a multiple of 16");
    TensorMap map{};
    map.mark = TensorMap::kMark;
    map.base = static_cast<std::byte*>(base);
    map.rank = std::uint8_t(rank);
    map.type = type;
    map.swizzle = Swizzle(swizzle);
    const std::uint64_t element = bytes_of(type);
    if (element == 0) return refuse("tensorDataType", type, "a CUtensorMapDataType");
    for (int axis = 0; axis < int(rank); ++axis) {
        if (sizes[axis] < 1 || sizes[axis] > std::uint64_t{1} << 32)
            return refuse(at("globalDim", axis), sizes[axis], "from 1 to 2^32");
        if (box[axis] < 1 || box[axis] > 256)
            return refuse(at("boxDim", axis), box[axis], "from 1 to 256");
        if (element_strides[axis] < 1 || element_strides[axis] > 8)
            return refuse(at("elementStrides", axis), element_strides[axis],
                          "from 1 to 8");
        if (element_strides[axis] != 1)
            return not_modelled(at("elementStrides", axis), element_strides[axis]);
        const std::uint64_t stride = axis == 0 ? element : strides[axis - 1];
        if (axis > 0 && (stride % 16 != 0 || stride >= std::uint64_t{1} << 40))
            return refuse(at("globalStrides", axis - 1), stride,
                          "a multiple of 16 below 2^40");
        map.sizes[axis] = sizes[axis];
        map.strides[axis] = stride;
        map.box[axis] = box[axis];
    }
    const std::uint64_t inner = box[0] * element;
    if (inner % 16 != 0)
        return refuse("boxDim[0] times the element's bytes", inner, "a multiple of 16");
    const std::uint32_t span = swizzle_span(map.swizzle);
    if (map.swizzle != Swizzle::none && inner > span)
        return refuse("boxDim[0] times the element's bytes", inner,
                      "at most " + std::to_string(span) + " with this swizzle");
    if (map.swizzle != Swizzle::none && inner < span)
        return not_modelled(
            "boxDim[0] times the element's bytes, narrower than the "
            "swizzle's " +
                std::to_string(span),
            inner);
    std::memset(out, 0, sizeof *out);
    std::memcpy(static_cast<void*>(out), &map, sizeof map);
    return CUDA_SUCCESS;
}

}  // namespace

std::uint32_t TensorMap::box_bytes() const {
    std::uint32_t bytes = element_bytes();
    for (int axis = 0; axis < rank; ++axis) bytes *= box[axis];
    return bytes;
}

TensorMap read_map(const void* tensor_map, int rank, const char* what) {
    if (reinterpret_cast<std::uintptr_t>(tensor_map) % 64 != 0)
        throw Fault{std::string(what) + ": the tensor map must be aligned to 64 bytes"};
    TensorMap map;
    std::memcpy(static_cast<void*>(&map), tensor_map, sizeof map);
    if (map.mark != TensorMap::kMark)
        throw Fault{std::string(what) +
                    ": the tensor map was not made by cuTensorMapEncodeTiled"};
    if (map.rank != rank)
        throw Fault{std::string(what) + ": " + std::to_string(rank) +
                    " coordinates for a tensor map of rank " + std::to_string(map.rank)};
    return map;
}

}  // namespace cuda_on_cpu

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                             unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result) {
    using namespace cuda_on_cpu;
    *function = nullptr;
    if (flags != cudaEnableDefault)
        return set_error(cudaErrorInvalidValue,
                         "cudaGetDriverEntryPointByVersion: flags = " +
                             std::to_string(flags) + ": must be cudaEnableDefault");
    const bool known = std::string(symbol) == "cuTensorMapEncodeTiled";
    const bool old = version < 12000;
    if (result != nullptr)
        *result = !known ? cudaDriverEntryPointSymbolNotFound
                  : old  ? cudaDriverEntryPointVersionNotSufficent
                         : cudaDriverEntryPointSuccess;
    if (!known || old)
        return set_error(cudaErrorInvalidValue,
                         std::string("cudaGetDriverEntryPointByVersion: symbol = ") +
                             symbol + ", version " + std::to_string(version) +
                             ": the executor has cuTensorMapEncodeTiled, of 12000");
    *function = reinterpret_cast<void*>(&encode);
    return cudaSuccess;
}
