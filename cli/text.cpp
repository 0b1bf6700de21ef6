// text.cpp: real text as tokens, so that routing is as uneven as language is.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "cli/compare/comparison.h"
#include "cli/files.h"
#include "core/error.h"
#include "core/rng.h"

namespace moe {

std::vector<TextTokens> read_micro_batches(const std::string& path, std::int64_t count,
                                           std::int64_t seq_len, std::int64_t micro_batch,
                                           bool may_shrink, std::int64_t multiple) {
    const std::string text = read_file("--text", path);
    const auto length = static_cast<std::int64_t>(text.size());
    if (may_shrink) {
        seq_len = std::min(seq_len, length / micro_batch / count);
        seq_len -= seq_len % multiple;
    }
    if (length == 0 || (may_shrink && seq_len == 0) ||
        seq_len * micro_batch * count > length)
        reject("--text", path,
               fmt::format("holds {} bytes, must hold at least {}S x B = {}", length,
                           count == 1 ? "" : fmt::format("{} micro-batches x ", count),
                           std::max(seq_len, multiple) * micro_batch * count));

    std::vector<TextTokens> pieces;
    for (std::int64_t i = 0; i < count; ++i) {
        TextTokens& tokens =
            pieces.emplace_back(TextTokens{path, seq_len, micro_batch, {}});
        tokens.bytes.resize(seq_len * micro_batch);
        for (std::int64_t s = 0; s < seq_len; ++s)
            for (std::int64_t b = 0; b < micro_batch; ++b)
                tokens.bytes[s * micro_batch + b] =
                    text[(i * micro_batch + b) * seq_len + s];
    }
    return pieces;
}

TextTokens read_text(const std::string& path, std::int64_t seq_len,
                     std::int64_t micro_batch, bool may_shrink, std::int64_t multiple) {
    return read_micro_batches(path, 1, seq_len, micro_batch, may_shrink, multiple)[0];
}

Tensor embed_text(const TextTokens& text, std::int64_t hidden_size, std::uint64_t seed) {
    // One table per place in the context; a byte weighs half as much as its successor.
    constexpr int kContext = 3;
    const double norm = 1.0 / std::sqrt(1.0 + 0.25 + 0.0625);
    const std::int64_t S = text.seq_len, B = text.micro_batch;
    // A text has more tokens than different bytes: each number is drawn once.
    std::set<std::int64_t> bytes(text.bytes.begin(), text.bytes.end());
    bytes.insert(0);  // stands before a sequence's first
    std::vector<double> tables(kContext * 256 * hidden_size);
    const auto row = [&](int back, std::int64_t byte) {
        return tables.data() + (back * 256 + byte) * hidden_size;
    };
    for (int back = 0; back < kContext; ++back)
        for (const std::int64_t byte : bytes)
            for (std::int64_t j = 0; j < hidden_size; ++j)
                row(back, byte)[j] = Rng(seed, 100 + back).normal(byte * hidden_size + j);

    Tensor hidden = Tensor::empty({S, B, hidden_size}, DType::f32);
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < S * B; ++t) {
        for (std::int64_t j = 0; j < hidden_size; ++j) {
            double value = 0.0, weight = norm;
            for (int back = 0; back < kContext; ++back, weight /= 2.0) {
                const std::int64_t earlier = t - back * B;  // the same sequence
                value += weight * row(back, earlier < 0 ? 0 : text.bytes[earlier])[j];
            }
            hidden.data<float>()[t * hidden_size + j] =
                static_cast<float>(BFloat16(static_cast<float>(value)));
        }
    }
    return hidden;
}

}  // namespace moe
