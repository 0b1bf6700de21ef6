// page_test.cpp: docs/naive_profile.md says what is counted now.

#include <fstream>
#include <sstream>

#include "cli/profile/page.h"
#include "naive_gpu/tier.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

// As `./moe profile --scale 8 --page`, but for the search for races, which counts nothing
// else and takes three times as long: ObserveLayer.TheLayerHasNoRaces looks for them.
TEST(ObservePage, OfTheNaiveTierIsUpToDate) {
    const std::string path = MOE_SOURCE_DIR "/docs/naive_profile.md";
    std::ostringstream page;
    page << std::ifstream(path).rdbuf();
    if (page.str().find(profile::compiler_in_words()) == std::string::npos)
        GTEST_SKIP() << path << " was made with another compiler";

    naive::register_naive_gpu();
    MoEConfig config = preset("qwen3_30b_a3b", 8);
    config.finalize();
    const profile::LayerProfile profile = profile::profile_layer(
        {config, ModuleSpec::uniform({"naive_gpu", DType::bf16}), 64, 1, 1234, false});
    const Regions regions =
        profile::page_regions(profile, "qwen3_30b_a3b, widths / 8", config);
    EXPECT_EQ(with_regions(path, page.str(), regions, "profile"), page.str())
        << "run ./moe profile --tier naive_gpu --scale 8 --page docs/naive_profile.md";
}

}  // namespace
}  // namespace moe::test
