// lines.cpp: from instructions to source lines, by elfutils' libdw.

#include "observe/lines.h"

#include <dwarf.h>
#include <elfutils/libdw.h>
#include <elfutils/libdwfl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>
#include <unordered_map>

namespace cuda_on_cpu::observe {
namespace {

/// The program as it runs, with the libraries it has opened so far.
Dwfl* open_program() {
    static const Dwfl_Callbacks callbacks = {
        .find_elf = dwfl_linux_proc_find_elf,
        .find_debuginfo = dwfl_standard_find_debuginfo,
        .section_address = dwfl_offline_section_address,
        .debuginfo_path = nullptr,
    };
    Dwfl* program = dwfl_begin(&callbacks);
    dwfl_linux_proc_report(program, getpid());
    dwfl_report_end(program, nullptr, nullptr);
    return program;
}

/// Code that stands for instructions, or for the language: whoever calls it is meant.
bool is_foreign(std::string_view file) {
    return file.find("cuda_on_cpu/include/") != file.npos ||
           file.ends_with("gpu/ptx.h") || file.ends_with("gpu/launch.h") ||
           file.ends_with("gpu/convert.h") || file.starts_with("/usr/");
}

SourceLine call_site(Dwarf_Die* inlined, Dwarf_Files* files) {
    Dwarf_Attribute attribute;
    Dwarf_Word file = 0, line = 0;
    dwarf_formudata(dwarf_attr(inlined, DW_AT_call_file, &attribute), &file);
    dwarf_formudata(dwarf_attr(inlined, DW_AT_call_line, &attribute), &line);
    const char* name = dwarf_filesrc(files, file, nullptr, nullptr);
    return {name == nullptr ? "" : name, int(line)};
}

/// From the source's own folder, where the compiler was told it from the build's.
SourceLine from_the_top(SourceLine line) {
    while (line.file.starts_with("../")) line.file.erase(0, 3);
    return line;
}

SourceLine find_line(std::uint64_t pc) {
    static Dwfl* const program = open_program();
    const std::uint64_t call = pc - 1;  // inside the instruction that called
    SourceLine found;
    Dwfl_Module* module = dwfl_addrmodule(program, call);
    Dwfl_Line* row = module ? dwfl_module_getsrc(module, call) : nullptr;
    if (row != nullptr)
        if (const char* file =
                dwfl_lineinfo(row, nullptr, &found.line, nullptr, nullptr, nullptr))
            found.file = file;
    if (found.file.empty()) {
        char text[32];
        std::snprintf(text, sizeof text, "0x%zx", std::size_t(pc));
        return {text, 0};
    }

    // Outwards through what was inlined here
    Dwarf_Addr bias = 0;
    Dwarf_Die* unit = dwfl_module_addrdie(module, call, &bias);
    Dwarf_Files* files = nullptr;
    if (unit == nullptr || dwarf_getsrcfiles(unit, &files, nullptr) != 0) return found;
    using Scopes = std::unique_ptr<Dwarf_Die, void (*)(void*)>;
    Dwarf_Die *innermost = nullptr, *scopes = nullptr;
    if (dwarf_getscopes(unit, call - bias, &innermost) <= 0) return found;
    const Scopes first_owner(innermost, std::free);
    // Those of getscopes() lead to where the innermost function was written, not to where
    // it was inlined
    const int count = dwarf_getscopes_die(innermost, &scopes);
    const Scopes owner(scopes, std::free);
    for (int i = 0; i < count && is_foreign(found.file); ++i)
        if (dwarf_tag(&scopes[i]) == DW_TAG_inlined_subroutine)
            found = call_site(&scopes[i], files);
    return found;
}

}  // namespace

const SourceLine& source_line(std::uint64_t pc) {
    static std::unordered_map<std::uint64_t, SourceLine> known;
    const auto [found, is_new] = known.try_emplace(pc);
    // On a stack of its own: libdw keeps tables of whole files on it, and a fiber's, from
    // which faults are told, is small.
    if (is_new)
        std::thread([&, &line = found->second] {
            line = from_the_top(find_line(pc));
        }).join();
    return found->second;
}

std::string to_string(const SourceLine& line) {
    return line.line == 0 ? line.file : line.file + ":" + std::to_string(line.line);
}

}  // namespace cuda_on_cpu::observe
