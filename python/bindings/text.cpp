// moe.embed_text(): a text as hidden states, as `moe compare` takes it.

#include <nanobind/nanobind.h>

#include "cli/compare/comparison.h"
#include "core/error.h"
#include "python/bindings/arrays.h"
#include "python/bindings/objects.h"
#include "python/bindings/unlocked.h"

namespace moe::python {
namespace {

Tensor embed(const nb::bytes& text, std::int64_t hidden_size, std::int64_t micro_batch,
             std::uint64_t seed) {
    const auto length = std::int64_t(text.size());
    if (hidden_size < 1) reject("hidden_size", hidden_size, "must be 1 or more");
    if (micro_batch < 1 || length % micro_batch != 0)
        reject("micro_batch_size", micro_batch,
               fmt::format("must divide the text's {} bytes", length));
    const std::int64_t S = length / micro_batch;
    TextTokens tokens{"", S, micro_batch, {}};
    tokens.bytes.resize(length);
    for (std::int64_t s = 0; s < S; ++s)
        for (std::int64_t b = 0; b < micro_batch; ++b)
            tokens.bytes[s * micro_batch + b] = std::uint8_t(text.c_str()[b * S + s]);
    const Unlocked unlocked;
    return embed_text(tokens, hidden_size, seed);
}

}  // namespace

void bind_text(nb::module_& module) {
    module.def(
        "embed_text",
        [](const nb::bytes& text, std::int64_t hidden_size, std::int64_t micro_batch,
           std::uint64_t seed) {
            return to_python(embed(text, hidden_size, micro_batch, seed));
        },
        nb::arg("text"), nb::arg("hidden_size"), nb::arg("micro_batch_size") = 1,
        nb::arg("seed") = 1234,
        nb::sig("def embed_text(text: bytes, hidden_size: int, "
                "micro_batch_size: int = 1, seed: int = 1234) -> Tensor"),
        R"(The tokens of `moe compare`: (S, B, H) fp32, exactly representable in bf16.

Each byte with the two before it in its sequence, embedded by fixed seeded tables and
weighed 1, 1/2, 1/4. The text is cut into B sequences of S bytes; token t = s B + b is byte
b S + s. InputError where B does not divide its length.)");
}

}  // namespace moe::python
