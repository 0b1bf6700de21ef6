#include "cli/terminal.h"

#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace moe {

std::size_t terminal_width() {
    if (const char* columns = std::getenv("COLUMNS"))
        if (const long width = std::strtol(columns, nullptr, 10); width > 0)
            return std::size_t(width);
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return kAnyWidth;
}

std::size_t columns_of(const std::string& text) {
    return std::size_t(std::count_if(text.begin(), text.end(),
                                     [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string wrapped(const std::string& text, std::size_t indent, std::size_t width) {
    std::string lines;
    std::string rest = text;
    while (columns_of(rest) > width) {
        // The last blank that leaves the line short enough, else the first after it
        const std::size_t start = rest.find_first_not_of(' ');
        std::size_t cut = std::string::npos;
        for (std::size_t at = rest.find(' ', start); at != std::string::npos;
             at = rest.find(' ', at + 1)) {
            if (cut != std::string::npos && columns_of(rest.substr(0, at)) > width) break;
            cut = at;
        }
        if (cut == std::string::npos) break;
        const std::size_t next = rest.find_first_not_of(' ', cut);
        if (next == std::string::npos) break;
        lines += rest.substr(0, rest.find_last_not_of(' ', cut) + 1) + "\n";
        rest = std::string(indent, ' ') + rest.substr(next);
    }
    return lines + rest;
}

TableParts::TableParts(std::vector<std::string> parts,
                       const std::function<std::size_t(std::size_t)>& width_without)
    : parts_(std::move(parts)) {
    const std::size_t width = terminal_width();
    while (left_out_ < parts_.size() && width_without(left_out_) > width) ++left_out_;
}

std::string TableParts::note(const std::string& elsewhere) const {
    if (left_out_ == 0) return "";
    const std::vector<std::string> gone(parts_.begin(), parts_.begin() + left_out_);
    return wrapped(fmt::format("Left out at {} columns: {} (a wider terminal{})",
                               terminal_width(), fmt::join(gone, ", "),
                               elsewhere.empty() ? "" : ", or " + elsewhere),
                   2) +
           "\n";
}

}  // namespace moe
