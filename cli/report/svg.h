/// @file
/// What the report is made of: text that is safe in a page, shapes, and a canvas that
/// collects them as SVG.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace moe {

/// Width of a picture in its own units; the page scales it.
inline constexpr double kPictureWidth = 1000.0;

/// All elements of a tensor on the host; none of an undefined or empty one.
template <typename T>
std::span<const T> elements(const Tensor& tensor) {
    if (tensor.numel() == 0) return {};
    return {tensor.data<T>(), static_cast<std::size_t>(tensor.numel())};
}

/// Bytes of the readable UTF-8 character at the start of `text`; 0 for a control
/// character and for what is no UTF-8.
inline std::size_t readable_length(std::string_view text) {
    const auto byte = [&](std::size_t i) -> std::uint32_t {
        return i < text.size() ? static_cast<std::uint8_t>(text[i]) : 0;
    };
    const std::uint32_t first = byte(0);
    if (first < 0x80) return first >= ' ' && first < 0x7F ? 1 : 0;
    const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    std::uint32_t code = first & (0x7Fu >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xC0u) != 0x80u) return 0;
        code = code << 6 | (byte(i) & 0x3Fu);
    }
    // Longer than needed, or no character at all, or one that turns the direction of text
    const std::uint32_t least[] = {0xA0, 0x800, 0x10000};
    const auto among = [&](std::uint32_t from, std::uint32_t to) {
        return code >= from && code <= to;
    };
    if (first < 0xC2 || first > 0xF4 || code < least[length - 2] || code > 0x10FFFF ||
        among(0xD800, 0xDFFF) || among(0xFFFE, 0xFFFF) || among(0x200B, 0x200F) ||
        among(0x2028, 0x202E) || among(0x2066, 0x2069))
        return 0;
    return length;
}

/// Text made safe for HTML and SVG, on one line. UTF-8 stays readable; control characters
/// and bytes that are no UTF-8 become "·", so that a user's file may hold anything.
inline std::string escape(std::string_view text) {
    std::string safe;
    while (!text.empty()) {
        const std::size_t length = readable_length(text);
        switch (text[0]) {
            case '&': safe += "&amp;"; break;
            case '<': safe += "&lt;"; break;
            case '>': safe += "&gt;"; break;
            case '"': safe += "&quot;"; break;
            case '\'': safe += "&#39;"; break;
            case '\t': safe += "    "; break;
            default: safe += length == 0 ? "·" : text.substr(0, length);
        }
        text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return safe;
}

/// One byte of the text as a visible character, escaped: "␣", "⏎", "⇥", or "E2" in
/// hexadecimal for what has no character of its own.
inline std::string visible(std::uint8_t byte) {
    if (byte == ' ') return "␣";
    if (byte == '\n') return "⏎";
    if (byte == '\t') return "⇥";
    const char character = static_cast<char>(byte);
    const std::string_view text(&character, 1);
    return readable_length(text) == 1 ? escape(text) : fmt::format("{:02X}", byte);
}

/// Shapes and words of one picture. `look` is a class of the style sheet, `tip` what a
/// hovering mouse reads; words and tips must be escaped already.
class Canvas {
  public:
    void text(double x, double y, const std::string& anchor, const std::string& words,
              const std::string& look = "") {
        body_ += fmt::format(
            "<text class='{}' x='{:.1f}' y='{:.1f}' text-anchor='{}'>{}</text>\n", look,
            x, y, anchor, words);
    }
    void rect(const std::string& look, double x, double y, double width, double height,
              const std::string& tip = "", const std::string& attributes = "") {
        body_ += fmt::format(
            "<rect class='{}' x='{:.2f}' y='{:.2f}' width='{:.2f}' height='{:.2f}' {}>",
            look, x, y, width, height, attributes);
        body_ += tip.empty() ? "</rect>\n" : "<title>" + tip + "</title></rect>\n";
    }
    void line(const std::string& look, double x1, double y1, double x2, double y2) {
        body_ += fmt::format(
            "<line class='{}' x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}'/>\n", look,
            x1, y1, x2, y2);
    }
    void add(const std::string& shapes) { body_ += shapes; }
    const std::string& body() const { return body_; }

    std::string svg(double height, const std::string& label) const {
        return fmt::format(
            "<div class='wide'><svg class='picture' viewBox='0 0 {} {:.0f}' role='img' "
            "aria-label='{}'>\n{}</svg></div>\n",
            kPictureWidth, height, label, body_);
    }

  private:
    std::string body_;
};

/// Attribute for a share from 0 to 1 as strength of colour; 0 is still to be seen.
inline std::string shade(double share) {
    return fmt::format("fill-opacity='{:.2f}'", 0.2 + 0.8 * share);
}

/// Class of colour `index`; eight hues, in turn.
inline std::string hue(std::int64_t index) {
    return fmt::format("hue{}", index % 8);
}

/// An S-shaped curve from left to right.
inline std::string curve(const std::string& look, double x1, double y1, double x2,
                         double y2, const std::string& tip) {
    const double bend = 0.42 * (x2 - x1);
    return fmt::format(
        "<path class='{}' d='M{:.1f} {:.1f} C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}'>"
        "<title>{}</title></path>\n",
        look, x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2, tip);
}

/// The picture of a run without tokens.
inline std::string nothing_to_draw(const std::string& label) {
    Canvas canvas;
    canvas.text(0, 20, "start", "There are no tokens to draw.");
    return canvas.svg(30, label);
}

}  // namespace moe
