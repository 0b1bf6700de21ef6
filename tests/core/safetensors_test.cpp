// Safetensors: reading, writing, and what lies on disk in between.

#include "tests/core/safetensors_support.h"
#include "tests/support.h"

namespace moe::test {
namespace {

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

TEST(Safetensors, ATensorMayHave64Axes) {
    const TempFolder folder;
    Shape shape(64, 1);
    shape[63] = 3;
    const Tensor deep = Tensor::from<std::uint8_t>({3}, {1, 2, 3}).reshaped(shape);
    save_safetensors(folder.file("deep"), {{"a", deep}}, {});
    expect_equal(SafetensorsFile::open(folder.file("deep")).tensor("a"), deep);
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
    NEEDS_DEVICE();
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
    const std::string path = folder.write(length_bytes(100'000'001) + "{");
    fs::resize_file(path, 100'000'100);  // sparse: takes no space
    EXPECT_EQ(
        error_of([&] { SafetensorsFile::open(path); }),
        path +
            ": header length = 100000001: must be at most 100000000 bytes: the rest "
            "of the file, and 100000000");
}

}  // namespace
}  // namespace moe::test
