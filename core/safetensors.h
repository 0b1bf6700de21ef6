/// @file
/// Reading and writing .safetensors files: named tensors and a few strings about them.
///
/// The format is Hugging Face's (https://huggingface.co/docs/safetensors), all of it
/// little-endian:
///
/// | bytes | what |
/// |---|---|
/// | 8 | n, length of the header in bytes, unsigned |
/// | n | header: a JSON object in UTF-8, may end in spaces |
/// | rest | data: the tensors, row-major, one after another without holes |
///
/// The header holds {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]} for
/// every tensor name, offsets in bytes from the start of the data, and may hold
/// "__metadata__", an object of strings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace moe {

/// What the header says about one tensor. A file may hold types that DType lacks, so the
/// type stays text until somebody asks for the tensor.
struct SafetensorsEntry {
    std::string dtype;       ///< the format's name, e.g. "BF16"
    Shape shape;             ///< every size >= 0; empty for a scalar
    std::int64_t begin = 0;  ///< first byte, from the start of the data
    std::int64_t end = 0;    ///< one past the last byte
};

/// A .safetensors file, mapped into memory for reading. Copies share the mapping.
///
/// Every error is an InputError of one line that names the file, the tensor and the
/// header field. The whole header is checked by open(); bytes are read when a tensor is
/// asked for.
///
/// NOTE: shortening the file in place while it is open ends the program (SIGBUS).
/// save_safetensors() never does that: it puts a new file in the place of the old one.
class SafetensorsFile {
  public:
    /// Maps the file and checks its header. Throws InputError unless `path` is a readable
    /// regular file of this format. Stricter than Hugging Face's reader: the header
    /// begins with "{", a name appears once, an entry has its three fields and no other,
    /// "__metadata__" is not null, a shape has at most 64 axes.
    static SafetensorsFile open(const std::string& path);

    /// As given to open().
    const std::string& path() const { return path_; }
    /// The strings under "__metadata__"; empty where there are none.
    const std::map<std::string, std::string>& metadata() const { return metadata_; }

    /// Names of all tensors, ascending.
    std::vector<std::string> names() const;
    bool contains(const std::string& name) const { return entries_.count(name) > 0; }
    /// Throws InputError for a name the file lacks.
    const Shape& shape(const std::string& name) const { return entry(name).shape; }

    /// The type in the format's name, "BF16". Throws InputError for a name the file
    /// lacks.
    const std::string& dtype(const std::string& name) const { return entry(name).dtype; }

    /// A copy of one tensor on the host, aligned whatever the alignment in the file.
    /// BOOL reads as u8, bytes unchanged. Throws InputError for a name the file lacks and
    /// for a type without a DType (F16, F8_E4M3, I8, ...).
    Tensor tensor(const std::string& name) const;

    /// The same without a copy: the mapped bytes, for reading only, which stay mapped for
    /// as long as the tensor lives. A copy after all where the file does not align it.
    Tensor mapped(const std::string& name) const;

  private:
    SafetensorsFile() = default;
    const SafetensorsEntry& entry(const std::string& name) const;
    /// InputError for a type that no Tensor has.
    DType readable_dtype(const std::string& name) const;

    std::string path_;
    std::map<std::string, std::string> metadata_;
    std::map<std::string, SafetensorsEntry> entries_;
    std::shared_ptr<const std::byte> data_;  ///< start of the data; holds the mapping
};

/// Writes `tensors` and `metadata` to `path`, in place of a file that may be there.
/// Whoever opens `path` finds the old file or the whole new one, and after an error the
/// old one. The same contents give the same bytes; every tensor is aligned to its dtype
/// within the file. Tensors on a device are brought to the host, one at a time.
///
/// Throws InputError when the folder is missing, unwritable or full, when `path` is
/// something other than a regular file, for a tensor named "__metadata__" and for text
/// that is not UTF-8. Every tensor must be defined().
void save_safetensors(const std::string& path,
                      const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata);

}  // namespace moe
