/// @file
/// Reading what users hand over, whole files; writing files whole or not at all.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/json_text.h"

namespace moe {

/// The bytes of a file. InputError naming `field` when it is missing, unreadable or a
/// folder.
std::string read_file(const std::string& field, const std::string& path);

/// A file to be written.
struct FileText {
    std::string path, text;
};

struct WriteFailure {
    std::string path, reason;
};

/// Writes all of these files or none: each goes to a draft beside its place, and only
/// when every draft is whole do they move there. Folders that lack are made, and do not
/// stay when nothing was written. Ctrl-C is heard when all is in its place. Returns what
/// went wrong.
std::optional<WriteFailure> write_all(const std::vector<FileText>& files);

/// Files that flags name, all or none of them: what a command writes when all is done.
class Outputs {
  public:
    void add(const std::string& flag, FileText file);
    /// InputError naming the flag of the file that cannot be written.
    void write() const;

  private:
    std::vector<FileText> files_;
    std::vector<std::string> flags_;
};

/// One file, whole. InputError naming `field` when it cannot be written.
void write_file(const std::string& field, const FileText& file);

}  // namespace moe
