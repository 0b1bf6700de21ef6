// mapped_test.cpp: tensors of a file without a copy.

#include "tests/checkpoint/support.h"

namespace moe::test {
namespace {

const std::vector<float> kValues = {1.5f, -2.0f, 3.25f};

/// A file of one F32 tensor "a" whose data begin at a multiple of 8 bytes, plus `shift`.
std::string write_one(const TempFolder& folder, std::size_t shift) {
    std::string header = R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}})";
    header.resize((header.size() + 7) / 8 * 8 + shift, ' ');
    return folder.write(file_bytes(
        header, {reinterpret_cast<const char*>(kValues.data()), 3 * sizeof(float)}));
}

TEST(CheckpointMapped, is_the_files_own_memory_and_outlives_who_opened_it) {
    const TempFolder folder;
    Tensor first, second;
    {
        const SafetensorsFile file = SafetensorsFile::open(write_one(folder, 0));
        first = file.mapped("a");
        second = file.mapped("a");
    }
    EXPECT_EQ(first.view().bytes, second.view().bytes);
    second = {};
    EXPECT_EQ(to_doubles(first), std::vector<double>(kValues.begin(), kValues.end()));
}

TEST(CheckpointMapped, is_a_copy_where_the_file_does_not_align_it) {
    const TempFolder folder;
    const SafetensorsFile file = SafetensorsFile::open(write_one(folder, 3));
    const Tensor tensor = file.mapped("a");
    EXPECT_NE(tensor.view().bytes, file.mapped("a").view().bytes);
    EXPECT_EQ(to_doubles(tensor), std::vector<double>(kValues.begin(), kValues.end()));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.view().bytes) % 4, 0u);
}

}  // namespace
}  // namespace moe::test
