/// @file
/// The model of cli/wire/model.h as a table, as a page and as pictures.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/markers.h"
#include "cli/wire/model.h"

namespace moe::wire {

void print_outlook(const Outlook& outlook, const Machine& machine);

nlohmann::ordered_json to_json(const Outlook& outlook, const Machine& machine);

/// Bars of seconds, EP by EP, as an SVG file.
std::string picture(const Outlook& outlook, const Machine& machine);

/// The presets as published, through all dispatchers.
std::vector<Outlook> presets(std::int64_t tokens, const Machine& machine);

/// Regions for with_regions(…, "wire"): "machine", and each preset's table by its name.
Regions page_regions(const std::vector<Outlook>& outlooks, const Machine& machine);

}  // namespace moe::wire
