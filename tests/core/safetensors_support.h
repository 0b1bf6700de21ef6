/// @file
/// What the safetensors suites share: folders that go away, files byte by byte.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

#include "core/safetensors.h"
#include "core/transfer.h"

namespace moe::test {

namespace fs = std::filesystem;
using Strings = std::map<std::string, std::string>;

/// A folder of this test's own that goes away with it.
class TempFolder {
  public:
    TempFolder() {
        static int count = 0;
        path_ =
            fmt::format("{}/safetensors_{}_{}", testing::TempDir(), ::getpid(), count++);
        fs::create_directory(path_);
    }
    TempFolder(const TempFolder&) = delete;
    ~TempFolder() { fs::remove_all(path_); }

    std::string file(const std::string& name) const { return path_ + "/" + name; }
    /// Path of a new file with these bytes.
    std::string write(const std::string& bytes) const {
        std::ofstream(file("a.safetensors"), std::ios::binary) << bytes;
        return file("a.safetensors");
    }
    std::ptrdiff_t num_files() const {
        return std::distance(fs::directory_iterator(path_), fs::directory_iterator());
    }

  private:
    std::string path_;
};

inline std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string length_bytes(std::uint64_t length) {
    return {reinterpret_cast<const char*>(&length), sizeof length};
}

/// A file of this header and data.
inline std::string file_bytes(const std::string& header, const std::string& data = "") {
    return length_bytes(header.size()) + header + data;
}

/// A file of one tensor "a", whose fields are given as JSON.
inline std::string one_tensor(const std::string& dtype, const std::string& shape,
                              const std::string& offsets, const std::string& data) {
    return file_bytes(
        fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype,
                    shape, offsets),
        data);
}

/// What the InputError says that `action` throws.
template <typename Action>
inline std::string error_of(Action action) {
    try {
        action();
    } catch (const InputError& error) {
        return error.what();
    }
    ADD_FAILURE() << "no InputError";
    return "";
}

inline void expect_equal(const Tensor& actual, const Tensor& expected) {
    EXPECT_EQ(actual.dtype(), expected.dtype());
    EXPECT_EQ(actual.shape(), expected.shape());
    ASSERT_EQ(actual.size_bytes(), expected.size_bytes());
    EXPECT_EQ(
        std::memcmp(actual.view().bytes, expected.view().bytes, actual.size_bytes()), 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(actual.view().bytes) % 64, 0u);
}

/// One tensor of every type, with the values that copies get wrong; sizes that leave
/// every later tensor misaligned unless they are sorted.
inline TensorMap every_dtype() {
    const double nan = std::nan("7");
    const float inf = std::numeric_limits<float>::infinity();
    const auto lowest = std::numeric_limits<std::int64_t>::min();
    return {{"a.u8", Tensor::from<std::uint8_t>({3}, {0, 1, 255})},
            {"b.f64", Tensor::from<double>({2, 2}, {1.0 / 3, -0.0, nan, 1e300})},
            {"c.bf16", Tensor::from<BFloat16>({3, 1}, {BFloat16(1), BFloat16(inf), {}})},
            {"d.i64", Tensor::from<std::int64_t>({1}, {lowest})},
            {"e.f32", Tensor::from<float>({1, 3}, {-inf, 1e-45f, 3.0f})},
            {"f.i32", Tensor::from<std::int32_t>({2}, {-1, 7})},
            {"g.scalar", Tensor::from<float>({}, {2.5f})},
            {"h.empty", Tensor::empty({0, 5}, DType::f64)},
            {"i.empty", Tensor::empty({2, 0}, DType::u8)}};
}

}  // namespace moe::test
