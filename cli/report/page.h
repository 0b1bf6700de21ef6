/// @file
/// The report as a file: one self-contained page, written whole or not at all.
#pragma once

#include <string>

namespace moe {

/// A page with the report's style.
std::string make_page(const std::string& title, const std::string& body);

/// Writes `folder`/index.html; see write_report(). Returns its path.
std::string write_page(const std::string& page, const std::string& folder);

}  // namespace moe
