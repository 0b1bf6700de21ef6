#include "core/safetensors.h"

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

#include "core/transfer.h"

namespace moe {
namespace {

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

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string length_bytes(std::uint64_t length) {
    return {reinterpret_cast<const char*>(&length), sizeof length};
}

/// A file of this header and data.
std::string file_bytes(const std::string& header, const std::string& data = "") {
    return length_bytes(header.size()) + header + data;
}

/// A file of one tensor "a", whose fields are given as JSON.
std::string one_tensor(const std::string& dtype, const std::string& shape,
                       const std::string& offsets, const std::string& data) {
    return file_bytes(
        fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype,
                    shape, offsets),
        data);
}

/// What the InputError says that `action` throws.
template <typename Action>
std::string error_of(Action action) {
    try {
        action();
    } catch (const InputError& error) {
        return error.what();
    }
    ADD_FAILURE() << "no InputError";
    return "";
}

void expect_equal(const Tensor& actual, const Tensor& expected) {
    EXPECT_EQ(actual.dtype(), expected.dtype());
    EXPECT_EQ(actual.shape(), expected.shape());
    ASSERT_EQ(actual.size_bytes(), expected.size_bytes());
    EXPECT_EQ(
        std::memcmp(actual.view().bytes, expected.view().bytes, actual.size_bytes()), 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(actual.view().bytes) % 64, 0u);
}

/// One tensor of every type, with the values that copies get wrong; sizes that leave
/// every later tensor misaligned unless they are sorted.
TensorMap every_dtype() {
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

TEST(Safetensors, RoundTripKeepsEveryBit) {
    const TempFolder folder;
    const TensorMap tensors = every_dtype();
    const Strings metadata = {{"moe_config", R"({"moe_router_topk": 2})"},
                              {"", "line\nbreak \"quotes\" \\ \xE2\x91\xA0"},
                              {"empty", ""}};
    save_safetensors(folder.file("x"), tensors, metadata);

    const SafetensorsFile file = SafetensorsFile::open(folder.file("x"));
    EXPECT_EQ(file.path(), folder.file("x"));
    EXPECT_EQ(file.metadata(), metadata);
    ASSERT_EQ(file.names().size(), tensors.size());
    for (const auto& [name, tensor] : tensors) {
        SCOPED_TRACE(name);
        ASSERT_TRUE(file.contains(name));
        EXPECT_EQ(file.shape(name), tensor.shape());
        expect_equal(file.tensor(name), tensor);
    }
}

TEST(Safetensors, RoundTripOfNothing) {
    const TempFolder folder;
    save_safetensors(folder.file("x"), {}, {});
    EXPECT_EQ(read_bytes(folder.file("x")), file_bytes("{}      "));
    const SafetensorsFile file = SafetensorsFile::open(folder.file("x"));
    EXPECT_TRUE(file.names().empty());
    EXPECT_TRUE(file.metadata().empty());
}

TEST(Safetensors, WritesWideTypesFirstBehindAPaddedHeader) {
    const TempFolder folder;
    save_safetensors(folder.file("x"),
                     {{"a", Tensor::from<std::uint8_t>({1}, {'u'})},
                      {"b", Tensor::from<std::int64_t>({1}, {0x0807060504030201})},
                      {"c", Tensor::from<BFloat16>({}, {BFloat16(1)})}},
                     {{"k", "v"}});
    const std::string header =
        R"({"__metadata__":{"k":"v"},)"
        R"("a":{"data_offsets":[10,11],"dtype":"U8","shape":[1]},)"
        R"("b":{"data_offsets":[0,8],"dtype":"I64","shape":[1]},)"
        R"("c":{"data_offsets":[8,10],"dtype":"BF16","shape":[]}})";
    const std::string padding((8 - header.size() % 8) % 8, ' ');
    EXPECT_EQ(read_bytes(folder.file("x")),
              file_bytes(header + padding, "\x01\x02\x03\x04\x05\x06\x07\x08\x80\x3Fu"));
}

TEST(Safetensors, SameContentsGiveSameBytes) {
    const TempFolder folder;
    save_safetensors(folder.file("x"), every_dtype(), {{"k", "v"}});
    save_safetensors(folder.file("y"), every_dtype(), {{"k", "v"}});
    EXPECT_EQ(read_bytes(folder.file("x")), read_bytes(folder.file("y")));
}

TEST(Safetensors, ReadsTensorsThatAreNotAligned) {
    const TempFolder folder;
    std::string header = R"({"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]},)"
                         R"("a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}})";
    const double value = -1.5;
    const std::string data(reinterpret_cast<const char*>(&value), sizeof value);
    const auto file =
        SafetensorsFile::open(folder.write(file_bytes(header, "\x01" + data)));
    expect_equal(file.tensor("a"), Tensor::from<std::uint8_t>({1}, {1}));
    expect_equal(file.tensor("b"), Tensor::from<double>({1}, {value}));
}

TEST(Safetensors, ForeignTypesAreLegalUntilAskedFor) {
    const TempFolder folder;
    const auto file = SafetensorsFile::open(folder.write(
        file_bytes(R"({"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},)"
                   R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                   R"("c":{"dtype":"F4","shape":[4],"data_offsets":[3,5]}})",
                   "abcde")));
    EXPECT_EQ(file.shape("a"), Shape{1});
    expect_equal(file.tensor("b"), Tensor::from<std::uint8_t>({1}, {'c'}));
    EXPECT_EQ(error_of([&] { file.tensor("a"); }),
              file.path() +
                  ": tensor \"a\": dtype = F16: readable are F64, F32, BF16, I64, "
                  "I32, U8 and BOOL");
}

TEST(Safetensors, NamesWhatIsMissing) {
    const TempFolder folder;
    const auto file = SafetensorsFile::open(folder.write(file_bytes("{}")));
    EXPECT_FALSE(file.contains("x"));
    const std::string expected =
        file.path() + ": tensor \"x\" = (absent): is not in the file";
    EXPECT_EQ(error_of([&] { file.tensor("x"); }), expected);
    EXPECT_EQ(error_of([&] { file.shape("x"); }), expected);
}

TEST(Safetensors, OpenFileAndItsTensorsOutliveTheNameOnDisk) {
    const TempFolder folder;
    const std::string path = folder.file("x");
    save_safetensors(path, {{"a", Tensor::from<float>({1}, {1})}}, {});
    auto file = std::make_unique<SafetensorsFile>(SafetensorsFile::open(path));
    save_safetensors(path, {{"a", Tensor::from<float>({1}, {2})}}, {});
    const SafetensorsFile copy = *file;
    file.reset();
    EXPECT_EQ(copy.tensor("a").data<float>()[0], 1.0f);
    EXPECT_EQ(SafetensorsFile::open(path).tensor("a").data<float>()[0], 2.0f);
    EXPECT_EQ(folder.num_files(), 1);
}

TEST(Safetensors, BringsDeviceTensorsToTheHost) {
    // Without a GPU tier in this program, host memory plays the device.
    bool registered = true;
    try {
        memory_functions(MemorySpace::device);
    } catch (const InternalError&) {
        registered = false;
        register_memory_space(MemorySpace::device, memory_functions(MemorySpace::host));
    }
    const TempFolder folder;
    const Tensor counts = Tensor::from<std::int64_t>({2}, {3, 4});
    Tensor on_device = Tensor::empty({2}, DType::i64, MemorySpace::device);
    copy(on_device, counts);
    save_safetensors(folder.file("x"), {{"counts", on_device}}, {});
    expect_equal(SafetensorsFile::open(folder.file("x")).tensor("counts"), counts);
    on_device = {};
    if (!registered) register_memory_space(MemorySpace::device, {});
}

TEST(Safetensors, FailedSaveLeavesTheOldFileAndNothingElse) {
    const TempFolder folder;
    const std::string path = folder.write("old");
    const Tensor one = Tensor::zeros({1}, DType::f32);
    const auto error = [&](const std::string& target, const std::string& name,
                           const Strings& metadata) {
        return error_of([&] { save_safetensors(target, {{name, one}}, metadata); });
    };
    EXPECT_EQ(error(path, "__metadata__", {}),
              path + ": tensor = __metadata__: is a reserved name");
    EXPECT_EQ(error(path, "\xFF", {}), path + ": tensor = \"\\ufffd\": must be UTF-8");
    EXPECT_EQ(error(path, "a", {{"k", "\xFF"}}),
              path + ": __metadata__: \"k\" = \"\\ufffd\": must be UTF-8");
    EXPECT_EQ(error(folder.file("no/x"), "a", {}),
              folder.file("no/x") +
                  " = No such file or directory: must be in a folder that "
                  "can be written to");
    EXPECT_EQ(error(folder.file(""), "a", {}),
              folder.file("") + " = not a regular file: must be a safetensors file");
    EXPECT_THROW(save_safetensors(path, {{"a", Tensor()}}, {}), InternalError);
    EXPECT_EQ(read_bytes(path), "old");
    EXPECT_EQ(folder.num_files(), 1);
}

TEST(Safetensors, RejectsWhatIsNoFile) {
    const TempFolder folder;
    const auto error = [&](const std::string& path) {
        return error_of([&] { SafetensorsFile::open(path); });
    };
    EXPECT_EQ(error(folder.file("x")),
              folder.file("x") +
                  " = No such file or directory: must be a readable "
                  "safetensors file");
    EXPECT_EQ(error(folder.file("")),
              folder.file("") + " = not a regular file: must be a safetensors file");
    ASSERT_EQ(::mkfifo(folder.file("pipe").c_str(), 0600), 0);
    EXPECT_EQ(error(folder.file("pipe")),
              folder.file("pipe") + " = not a regular file: must be a safetensors file");
}

TEST(Safetensors, RejectsAHeaderAboveTheLimit) {
    const TempFolder folder;
    const std::string path = folder.write(length_bytes(100'000'001));
    fs::resize_file(path, 100'000'100);  // sparse: takes no space
    EXPECT_EQ(
        error_of([&] { SafetensorsFile::open(path); }),
        path +
            ": header length = 100000001: must be at most 100000000 bytes: the rest "
            "of the file, and 100000000");
}

struct Malformed {
    friend void PrintTo(const Malformed& malformed, std::ostream* out) {
        *out << malformed.name;
    }
    std::string name;
    std::string bytes;
    std::string message;  ///< what the error says after the path
};

std::string case_name(const testing::TestParamInfo<Malformed>& info) {
    return info.param.name;
}

class SafetensorsMalformed : public testing::TestWithParam<Malformed> {};

TEST_P(SafetensorsMalformed, IsRejectedInOneLine) {
    const TempFolder folder;
    const std::string path = folder.write(GetParam().bytes);
    const std::string error = error_of([&] { SafetensorsFile::open(path); });
    EXPECT_EQ(error.find(path + ": " + GetParam().message), 0u) << error;
    EXPECT_EQ(error.find('\n'), error.npos) << error;
    EXPECT_LT(error.size(), path.size() + 400) << error;
}

/// n times `text`.
std::string times(std::size_t n, const std::string& text) {
    std::string result;
    for (std::size_t i = 0; i < n; ++i) result += text;
    return result;
}

const std::string kF32 = R"("F32")";
const std::string kEntry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
const std::string kSecond = R"({"dtype":"U8","shape":[2],"data_offsets":)";

INSTANTIATE_TEST_SUITE_P(
    Size, SafetensorsMalformed,
    testing::Values(
        Malformed{"empty", "", "file size = 0: must be at least 8"},
        Malformed{"seven_bytes", "1234567", "file size = 7: must be at least 8"},
        Malformed{"no_header", length_bytes(0), "header = begins with \"\""},
        Malformed{"length_past_end", length_bytes(3) + "{}",
                  "header length = 3: must be at most 2 bytes"},
        Malformed{"length_wraps", length_bytes(~0ull - 6) + "{}",
                  "header length = 18446744073709551609: must be at most 2 bytes"},
        Malformed{"trailing_bytes", file_bytes("{}", "x"),
                  "data size = 1: must be 0 bytes, where the last tensor ends"},
        Malformed{"trailing_after_tensor", one_tensor(kF32, "[1]", "[0,4]", "12345"),
                  "data size = 5: must be 4 bytes"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Text, SafetensorsMalformed,
    testing::Values(
        Malformed{"array", file_bytes("[]"), "header = begins with \"[]\""},
        Malformed{"leading_space", file_bytes(" {}"), "header = begins with \" {}\""},
        Malformed{"byte_order_mark", file_bytes("\xEF\xBB\xBF{}"),
                  "header = begins with"},
        Malformed{"zero_byte", file_bytes(std::string("{}\0x", 4)),
                  "header = holds a zero byte: must be a JSON object in UTF-8"},
        Malformed{"cut_off", file_bytes(R"({"a":)"), "header = \"parse error at line"},
        Malformed{"two_objects", file_bytes("{}{}"), "header = \"parse error at line"},
        Malformed{"comment", file_bytes("{}//"), "header = \"parse error at line"},
        Malformed{"not_a_number", file_bytes(R"({"a":NaN})"),
                  "header = \"parse error at line"},
        Malformed{"number_too_large", file_bytes(R"({"a":1e999})"),
                  "header = \"number overflow parsing"},
        Malformed{"not_utf8", file_bytes("{\"\xC3(\":1}"),
                  "header = \"parse error at line"},
        Malformed{"surrogate", file_bytes(R"({"\ud800":1})"),
                  "header = \"parse error at line"},
        Malformed{"line_break", file_bytes("{\"a\nb\":1}"),
                  "header = \"parse error at line"},
        Malformed{"long_token", file_bytes("{\"" + times(100'000, "x")),
                  "header = \"parse error at line"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Structure, SafetensorsMalformed,
    testing::Values(
        Malformed{"entry_number", file_bytes(R"({"a":1})"),
                  "tensor \"a\" = 1: must be one object"},
        Malformed{"entry_null", file_bytes(R"({"a":null})"),
                  "tensor \"a\" = null: must be one object"},
        Malformed{"entry_array", file_bytes(R"({"a":["F32",[1],[0,4]]})"),
                  "tensor \"a\" = an array: must be one object"},
        Malformed{"bomb_of_arrays", file_bytes("{\"a\":" + times(1'000'000, "[")),
                  "tensor \"a\" = an array: must be one object"},
        Malformed{
            "bomb_of_objects", file_bytes(times(1'000'000, R"({"shape":)")),
            "tensor \"shape\": \"shape\" = an object: must be one value or one array"},
        Malformed{"bomb_in_shape",
                  file_bytes(R"({"a":{"shape":)" + times(1'000'000, "[")),
                  "tensor \"a\": \"shape\" = an array: must be one value or one array"},
        Malformed{"long_shape",
                  file_bytes(R"({"a":{"shape":[1)" + times(1'000'000, ",1")),
                  "tensor \"a\": \"shape\" = over 64 numbers"},
        Malformed{"same_name_twice",
                  file_bytes("{\"a\":" + kEntry + ",\"a\":" + kEntry + "}", "x"),
                  "tensor \"a\" = given twice: must be one object"},
        Malformed{"same_name_escaped",
                  file_bytes("{\"a\":" + kEntry + ",\"\\u0061\":" + kEntry + "}", "x"),
                  "tensor \"a\" = given twice: must be one object"},
        Malformed{"same_field_twice", file_bytes(R"({"a":{"dtype":"F32","dtype":"U8"}})"),
                  "tensor \"a\": \"dtype\" = given twice: must be one value"},
        Malformed{
            "unknown_field", file_bytes(R"({"a":{"dtypes":"U8"}})"),
            "tensor \"a\": field = \"dtypes\": allowed are dtype, shape, data_offsets"},
        Malformed{"name_of_two_lines", file_bytes("{\"a\\nb\":1}"),
                  "tensor \"a\\nb\" = 1: must be one object"},
        Malformed{"long_name", file_bytes("{\"" + times(100'000, "x") + "\":1}"),
                  "tensor \"xxxx"},
        Malformed{"metadata_number", file_bytes(R"({"__metadata__":{"k":1}})"),
                  "__metadata__: \"k\" = 1: must be a string"},
        Malformed{"metadata_array", file_bytes(R"({"__metadata__":{"k":["v"]}})"),
                  "__metadata__: \"k\" = [\"v\"]: must be a string"},
        Malformed{"metadata_object", file_bytes(R"({"__metadata__":{"k":{}}})"),
                  "__metadata__: \"k\" = an object: must be one value"},
        Malformed{"metadata_null", file_bytes(R"({"__metadata__":null})"),
                  "__metadata__ = null: must be one object"},
        Malformed{"metadata_twice",
                  file_bytes(R"({"__metadata__":{},"__metadata__":{}})"),
                  "__metadata__ = given twice: must be one object"}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Fields, SafetensorsMalformed,
    testing::Values(
        Malformed{"no_dtype", file_bytes(R"({"a":{"shape":[1],"data_offsets":[0,4]}})"),
                  "tensor \"a\": dtype = (absent): is required"},
        Malformed{"no_shape", file_bytes(R"({"a":{"dtype":"U8","data_offsets":[0,4]}})"),
                  "tensor \"a\": shape = (absent): is required"},
        Malformed{"no_offsets", file_bytes(R"({"a":{"dtype":"U8","shape":[1]}})"),
                  "tensor \"a\": data_offsets = (absent): is required"},
        Malformed{"dtype_number", one_tensor("32", "[1]", "[0,4]", "1234"),
                  "tensor \"a\": dtype = 32: allowed are BF16, BOOL"},
        Malformed{"dtype_unknown", one_tensor(R"("f32")", "[1]", "[0,4]", "1234"),
                  "tensor \"a\": dtype = \"f32\": allowed are BF16, BOOL"},
        Malformed{"shape_number", one_tensor(kF32, "1", "[0,4]", "1234"),
                  "tensor \"a\": shape = 1: must be an array of integers"},
        Malformed{"shape_null", one_tensor(kF32, "null", "[0,4]", "1234"),
                  "tensor \"a\": shape = null: must be an array of integers"},
        Malformed{"shape_text", one_tensor(kF32, R"(["1"])", "[0,4]", "1234"),
                  "tensor \"a\": shape = [\"1\"]: must be an array of integers"},
        Malformed{"shape_negative", one_tensor(kF32, "[-1]", "[0,4]", "1234"),
                  "tensor \"a\": shape = [-1]: must be an array of integers from 0"},
        Malformed{"shape_fraction", one_tensor(kF32, "[1.5]", "[0,4]", "1234"),
                  "tensor \"a\": shape = [1.5]: must be an array of integers"},
        Malformed{"shape_above_int64",
                  one_tensor(kF32, "[9223372036854775808]", "[0,0]", ""),
                  "tensor \"a\": shape = [9223372036854775808]: must be an array of"},
        Malformed{"shape_above_uint64",
                  one_tensor(kF32, "[18446744073709551617]", "[0,4]", "1234"),
                  "tensor \"a\": shape = [1.8446744073709552e+19]: must be an array of"},
        Malformed{"product_wraps_to_1",  // 2^32 * 2^32 * 4 bytes = 2^66
                  one_tensor(kF32, "[4294967296,4294967296]", "[0,0]", ""),
                  "tensor \"a\": shape = [4294967296,4294967296]: must multiply to less"},
        Malformed{"bytes_wrap_to_0",
                  one_tensor(kF32, "[4611686018427387904]", "[0,0]", ""),
                  "tensor \"a\": shape = [4611686018427387904]: must multiply to less"},
        Malformed{
            "product_hidden_by_0",
            one_tensor(kF32, "[0,4294967296,4294967296]", "[0,0]", ""),
            "tensor \"a\": shape = [0,4294967296,4294967296]: must multiply to less"},
        Malformed{"half_a_byte", one_tensor(R"("F4")", "[3]", "[0,2]", "12"),
                  "tensor \"a\": shape = [3]: must fill whole bytes of F4"},
        Malformed{"offsets_object", one_tensor(kF32, "[1]", "{}", "1234"),
                  "tensor \"a\": \"data_offsets\" = an object: must be one value"},
        Malformed{"offsets_text", one_tensor(kF32, "[1]", R"("0,4")", "1234"),
                  "tensor \"a\": data_offsets = \"0,4\": must be an array of integers"},
        Malformed{"one_offset", one_tensor(kF32, "[1]", "[0]", "1234"),
                  "tensor \"a\": data_offsets = [0]: must be [begin, end]"},
        Malformed{"three_offsets", one_tensor(kF32, "[1]", "[0,4,8]", "1234"),
                  "tensor \"a\": data_offsets = [0,4,8]: must be [begin, end]"},
        Malformed{"negative_offset", one_tensor(kF32, "[1]", "[-4,0]", "1234"),
                  "tensor \"a\": data_offsets = [-4,0]: must be an array of integers"},
        Malformed{"fractional_offset", one_tensor(kF32, "[1]", "[0,4.0]", "1234"),
                  "tensor \"a\": data_offsets = [0,4.0]: must be an array of integers"},
        Malformed{"ends_before_it_begins", one_tensor(kF32, "[1]", "[4,0]", "1234"),
                  "tensor \"a\": data_offsets = [4,0]: must not end before they begin"},
        Malformed{"ends_after_the_data", one_tensor(kF32, "[2]", "[0,8]", "1234"),
                  "tensor \"a\": data_offsets = [0,8]: must end within 4 bytes"},
        Malformed{"too_few_bytes", one_tensor(kF32, "[2]", "[0,4]", "1234"),
                  "tensor \"a\": data_offsets = [0,4]: must span 8 bytes: F32 [2]"},
        Malformed{"scalar_without_bytes", one_tensor(kF32, "[]", "[0,0]", ""),
                  "tensor \"a\": data_offsets = [0,0]: must span 4 bytes: F32 []"},
        Malformed{"bytes_for_nothing", one_tensor(kF32, "[0]", "[0,4]", "1234"),
                  "tensor \"a\": data_offsets = [0,4]: must span 0 bytes: F32 [0]"},
        Malformed{"hole_at_the_start", one_tensor(kF32, "[1]", "[1,5]", "12345"),
                  "tensor \"a\": data_offsets = [1,5]: must begin at 0, where"},
        Malformed{
            "hole_between",
            file_bytes("{\"a\":" + kEntry + ",\"b\":" + kSecond + "[2,4]}}", "1234"),
            "tensor \"b\": data_offsets = [2,4]: must begin at 1, where"},
        Malformed{"overlap",
                  file_bytes("{\"b\":" + kEntry + ",\"a\":" + kSecond + "[0,2]}}", "12"),
                  "tensor \"a\": data_offsets = [0,2]: must begin at 1, where"}),
    case_name);

TEST(Safetensors, AnyDamageReadsOrIsRejected) {
    const TempFolder folder;
    save_safetensors(folder.file("x"), every_dtype(), {{"k", "v"}});
    const std::string original = read_bytes(folder.file("x"));
    std::mt19937 random(1);
    for (int round = 0; round < 2000; ++round) {
        std::string damaged = original;
        for (int flips = 1 + random() % 4; flips > 0; --flips)
            damaged[random() % damaged.size()] = static_cast<char>(random());
        if (round % 4 == 0) damaged.resize(random() % damaged.size());
        try {
            const auto file = SafetensorsFile::open(folder.write(damaged));
            for (const std::string& name : file.names()) file.tensor(name);
        } catch (const InputError&) {
            // Expected of most; any other exception fails the test.
        }
    }
}

}  // namespace
}  // namespace moe
