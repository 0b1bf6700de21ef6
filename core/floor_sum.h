/// @file
/// How core/floors.h adds up a floor, term by term.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/floors.h"

namespace moe {

/// A floor under construction: terms such as "2 EFH in bf16".
class Floors::Sum {
  public:
    explicit Sum(const Floors& floors) : floors_(floors) {}

    /// `times` tensors of activations or weights; their sizes as letters, l for ℓ.
    Sum& add(std::int64_t times, const std::string& letters) {
        return add(times, letters, floors_.formats_.dtype);
    }
    Sum& add(std::int64_t times, const std::string& letters, DType dtype) {
        const std::string shown = shown_letters(letters);
        const auto same = std::find_if(terms_.begin(), terms_.end(),
                                       [&](const auto& t) { return t.first == shown; });
        if (same != terms_.end())
            same->second += times;
        else
            terms_.emplace_back(shown, times);
        floor_.bytes += times * count(letters) * std::int64_t(size_of(dtype));
        return *this;
    }
    Sum& logits(std::int64_t times) { return add(times, "TE", floors_.formats_.logits); }
    Sum& probs(std::int64_t times, const std::string& letters) {
        return add(times, letters, floors_.formats_.probs);
    }
    /// The shape of W1, of h or of its bias: 2F where the linear unit is gated.
    Sum& add_gated(std::int64_t times, const std::string& letters) {
        return add(times * (floors_.config_.gated_linear_unit ? 2 : 1), letters);
    }
    Sum& metadata(const std::string& letters, DType dtype) {
        floor_.metadata += count(letters) * std::int64_t(size_of(dtype));
        return *this;
    }
    Sum& ids(const std::string& letters) {
        return metadata(letters, floors_.formats_.ids);
    }
    /// Rows of each expert, for products over rows in expert order.
    Sum& counts() { return floors_.routed_ ? ids("E") : *this; }
    Sum& product(std::int64_t times, const std::string& letters) {
        floor_.flops += 2.0 * double(times) * double(count(letters));
        return *this;
    }
    Sum& gated_product(const std::string& letters) {
        return product(floors_.config_.gated_linear_unit ? 2 : 1, letters);
    }

    operator Floor() const {
        Floor floor = floor_;
        for (const auto& [letters, times] : terms_)
            floor.formula += (floor.formula.empty() ? "" : " + ") +
                             (times > 1 ? std::to_string(times) : "") + letters;
        if (floor.metadata > 0) floor.formula += " + m";
        return floor;
    }

  private:
    /// "NH" of "Nl", or "Nℓ" with moe_latent_size.
    std::string shown_letters(const std::string& letters) const {
        const std::string latent = floors_.config_.moe_latent_size ? "ℓ" : "H";
        std::string shown;
        for (const char letter : letters)
            shown += letter == 'l' ? latent : std::string(1, letter);
        return shown;
    }
    /// The product of the sizes that the letters stand for.
    std::int64_t count(const std::string& letters) const {
        const MoEConfig& c = floors_.config_;
        std::int64_t product = 1;
        for (std::size_t i = 0; i < letters.size(); ++i) switch (letters[i]) {
                case 'T': product *= floors_.sizes_.num_tokens; break;
                case 'N': product *= floors_.sizes_.num_rows; break;
                case 'H': product *= c.hidden_size; break;
                case 'l': product *= c.latent_size(); break;
                case 'E': product *= c.num_experts(); break;
                case 'K': product *= c.moe_router_topk; break;
                case 'F':
                    if (letters.compare(i, 2, "Fs") == 0)
                        product *= c.shared_ffn(), ++i;
                    else
                        product *= c.ffn();
                    break;
                default: MOE_CHECK(false);
            }
        return product;
    }

    const Floors& floors_;
    Floor floor_;
    std::vector<std::pair<std::string, std::int64_t>> terms_;
};

}  // namespace moe
