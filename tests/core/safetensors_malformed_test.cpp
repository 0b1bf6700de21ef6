// Malformed and damaged safetensors files: one line each, never a crash.

#include "tests/core/safetensors_support.h"

namespace moe::test {
namespace {

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
        Malformed{"empty", "", "file size = 0: no safetensors file: must be at least 8"},
        Malformed{"seven_bytes", "1234567", "file size = 7: no safetensors file: "},
        Malformed{"text", "# A text of words",
                  R"(file = begins with "# A text of word": no safetensors file: )"},
        Malformed{
            "json", R"({"name":{"length":3}})",
            "file = begins with \"{\\\"name\\\":{\\\"length\": no safetensors file: "},
        Malformed{"gzip", std::string("\x1f\x8b\b\0\0\0\0\0\0\3", 10),
                  "file = begins with "},
        Malformed{"no_header", length_bytes(0), "header = begins with \"\""},
        Malformed{"length_past_end", length_bytes(3) + "{}",
                  "header length = 3: must be at most 2 bytes"},
        Malformed{"length_wraps", length_bytes(~0ull - 6) + "{}", "file = begins with "},
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
        Malformed{"shape_of_65",
                  file_bytes(R"({"a":{"dtype":"U8","shape":[1)" + times(64, ",1") +
                                 R"(],"data_offsets":[0,1]}})",
                             "x"),
                  "tensor \"a\": \"shape\" = over 64 numbers"},
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
}  // namespace moe::test
