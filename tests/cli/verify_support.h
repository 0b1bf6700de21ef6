/// @file
/// What the suites about `moe verify` share: golden files with something changed.
#pragma once

#include "core/safetensors.h"
#include "tests/cli/support.h"

namespace moe::test {

using Words = std::vector<std::string>;
using Metadata = std::map<std::string, std::string>;

class VerifyTest : public CliTest {
  protected:
    using Change = std::function<void(TensorMap&, Metadata&)>;

    /// A copy of a golden case with changes, saved under `name`.
    std::string changed(const std::string& name, const Change& change,
                        const std::string& source = "one_token") const {
        const SafetensorsFile file = SafetensorsFile::open(golden(source));
        TensorMap tensors;
        for (const std::string& tensor : file.names())
            tensors[tensor] = file.tensor(tensor);
        Metadata metadata = file.metadata();
        change(tensors, metadata);
        save_safetensors(path(name), tensors, metadata);
        return path(name);
    }

    /// Exit code 2, nothing on stdout, one line "moe: <path>…" with these words.
    static testing::AssertionResult IsRejected(const std::string& file, Words words) {
        words.push_back("moe: " + file);
        return IsBadInput({"verify", "--json", file}, words);
    }
    testing::AssertionResult RejectsTensor(const std::string& name, const Tensor& tensor,
                                           const Words& words) const {
        return IsRejected(changed("t", [&](TensorMap& t, auto&) { t[name] = tensor; }),
                          words);
    }
    testing::AssertionResult RejectsMetadata(const std::string& key,
                                             const std::string& value,
                                             const Words& words) const {
        return IsRejected(changed("m", [&](auto&, Metadata& m) { m[key] = value; }),
                          words);
    }
    /// The config of the file with these fields before its own.
    testing::AssertionResult RejectsConfig(const std::string& fields,
                                           const Words& words) const {
        return IsRejected(
            changed("c", [&](auto&,
                             Metadata& m) { m["moe_config"].insert(1, fields + ", "); }),
            words);
    }
};

}  // namespace moe::test
