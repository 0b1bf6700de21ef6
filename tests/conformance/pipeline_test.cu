// pipeline_test.cu: the kernels of docs/microscope.md; in the last of them Hopper's parts
// play together.

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/transfer.h"
#include "docs/microscope/linear.h"
#include "gpu/tensor.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

using microscope::Version;

struct Operand {
    std::int64_t rows, columns;
    std::vector<float> values;

    Operand(std::int64_t r, std::int64_t c, int step, int range)
        : rows(r), columns(c), values(std::size_t(r * c)) {
        for (std::size_t i = 0; i < values.size(); ++i)
            values[i] = float(int(i * std::size_t(step) % (2 * range + 1)) - range);
    }
    Tensor on_device(Version version) const {
        return transfer(Tensor::from({rows, columns}, values),
                        {MemorySpace::device, microscope::operand_dtype(version)});
    }
};

std::vector<float> plain_product(const Operand& x, const Operand& weight) {
    std::vector<float> y(std::size_t(x.rows * weight.rows));
    for (std::int64_t row = 0; row < x.rows; ++row)
        for (std::int64_t column = 0; column < weight.rows; ++column)
            for (std::int64_t j = 0; j < x.columns; ++j)
                y[row * weight.rows + column] +=
                    x.values[row * x.columns + j] * weight.values[column * x.columns + j];
    return y;
}

void expect_product(Version version, const Operand& x, const Operand& weight) {
    const Tensor y =
        microscope::linear(version, x.on_device(version), weight.on_device(version));
    EXPECT_EQ(gpu::to_host<float>(y), plain_product(x, weight))
        << microscope::to_string(version);
}

TEST(ConformancePipeline, EveryVersionOfTheLessonGivesTheSameProduct) {
    gpu::register_device_memory();
    for (const Version version : microscope::kVersions) {
        if (version == Version::pipelined) continue;
        expect_product(version, {37, 72, 7, 6}, {44, 72, 5, 5});
        expect_product(version, {1, 1, 1, 1}, {1, 1, 1, 1});
    }
}

TEST(ConformancePipeline, TmaAndWgmmaMultiplyAMatrixWithRaggedEdges) {
    MOE_NEEDS_HOPPER;
    gpu::register_device_memory();
    in_every_mode([&] {
        expect_product(Version::pipelined, {77, 264, 7, 6}, {108, 264, 5, 5});
    });
    expect_product(Version::pipelined, {1, 8, 7, 6}, {4, 8, 5, 5});
}

TEST(ConformancePipeline, SizesThatTmaCannotReachAreRefused) {
    gpu::register_device_memory();
    for (const auto& [in, out, message] :
         {std::tuple(12, 4, "in = 12: must be a multiple of 8"),
          std::tuple(16, 6, "out = 6: must be a multiple of 4")}) {
        try {
            expect_product(Version::pipelined, {3, in, 7, 6}, {out, in, 5, 5});
            ADD_FAILURE() << message;
        } catch (const InputError& error) {
            EXPECT_EQ(std::string(error.what()).find(message), 0) << error.what();
        }
    }
}

}  // namespace
}  // namespace moe::test
