// options.cpp: flags for suppliers: tiers, precisions, threads, rungs.

#include "cli/options.h"

#include <fmt/ranges.h>

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cli/notes.h"
#include "core/error.h"
#include "core/tier.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe {

ModuleSpec parse_spec(const std::string& spec, const ComponentSpec& otherwise) {
    try {
        return ModuleSpec::parse(spec, otherwise);
    } catch (const InputError& error) {
        throw InputError(std::string("--") + error.what());
    }
}

std::vector<std::string> tier_names() {
    std::vector<std::string> names;
    for (const Tier* tier : tiers()) names.push_back(tier->name());
    return names;
}

std::vector<std::string> dtype_names() {
    return {to_string(DType::f64), to_string(DType::f32), to_string(DType::bf16)};
}

void add_threads_flag(Command& command) {
    command.option(
        "--threads",
        [](const std::string& text) {
            const std::int64_t threads = parse_integer("--threads", text);
            if (threads < 1 || threads > 1024)
                reject("--threads", threads, "must be from 1 to 1024");
#ifdef _OPENMP
            omp_set_num_threads(static_cast<int>(threads));
#else
            if (threads > 1) reject("--threads", threads, "this build has no OpenMP: 1");
#endif
        },
        "CPU threads (default: all)");
}

void add_rung_flag(Command& command) {
    command.option(
        "--grouped-gemm-rung",
        [](const std::string& text) {
            const std::int64_t rung = parse_integer("--grouped-gemm-rung", text);
            if (rung < 1 || rung > int(optimized::kHighestRung))
                reject("--grouped-gemm-rung", rung,
                       "must be 1 (1_mma_sync), 2 (2_tma_wgmma), 3 "
                       "(3_warp_specialized) or 4 (4_scheduler_and_epilogue)");
            optimized::set_rung(static_cast<optimized::Rung>(rung));
        },
        "Products of optimized_gpu: 1 (mma.sync), 2 (TMA, wgmma), 3 (and warps that "
        "load) or 4 (and pairs of blocks, TMA stores); default: the highest that device "
        "and widths allow");
}

std::string refusal(const Tier& tier, const MoEConfig& config) {
    try {
        tier.check(config);
        return "";
    } catch (const InputError& error) {
        return error.what();
    }
}

namespace {

/// "; reference_cpu, naive_gpu have": tiers whose layers can be in that dtype.
std::string who_has(DType dtype) {
    std::vector<std::string> names;
    for (const Tier* tier : tiers()) {
        const std::vector<DType> dtypes = tier->dtypes();
        if (tier->missing().empty() && std::count(dtypes.begin(), dtypes.end(), dtype))
            names.push_back(tier->name());
    }
    if (names.empty()) return "";
    return fmt::format("; {} {}", fmt::join(names, ", "),
                       names.size() == 1 ? "has" : "have");
}

}  // namespace

std::vector<ComponentSpec> choose_suppliers(const std::vector<std::string>& tier_names,
                                            const std::vector<std::string>& dtype_names,
                                            const MoEConfig* config) {
    std::vector<const Tier*> chosen;
    std::string left_out;
    for (const std::string& name : tier_names) {
        chosen.push_back(&find_tier("--tier", name));
        if (config != nullptr) chosen.back()->check(*config);
    }
    for (const Tier* tier : tier_names.empty() ? tiers() : std::vector<const Tier*>()) {
        std::string why = tier->missing();
        if (why.empty() && config != nullptr) why = refusal(*tier, *config);
        if (why.empty())
            chosen.push_back(tier);
        else
            left_out += "; left out: tier = " + tier->name() + ": " + why;
    }
    std::vector<DType> wanted;
    for (const std::string& name : dtype_names)
        wanted.push_back(parse_dtype("--dtype", name));

    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : chosen)
        for (DType dtype : tier->dtypes())
            if (wanted.empty() || std::count(wanted.begin(), wanted.end(), dtype))
                suppliers.push_back({tier->name(), dtype});
    for (DType dtype : wanted)
        if (std::none_of(suppliers.begin(), suppliers.end(),
                         [&](const ComponentSpec& s) { return s.dtype == dtype; }))
            reject(
                "--dtype", to_string(dtype),
                "no chosen tier has it for every component" + who_has(dtype) + left_out);
    if (!left_out.empty()) note(left_out.substr(2));
    return suppliers;
}

}  // namespace moe
