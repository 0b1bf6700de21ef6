/// @file
/// The tensors of a checkpoint, by name: in safetensors shards of a folder, or in memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/safetensors.h"
#include "core/tensor.h"

namespace moe::checkpoint {

/// Names are known at once; a shard is mapped when a tensor of it is asked for.
class Source {
  public:
    /// A folder with model.safetensors.index.json (or one *.safetensors.index.json) and
    /// the shards that it names, or with model.safetensors, or with *.safetensors.
    /// InputError for a folder or a shard that is not there, and for an index that is
    /// none.
    static Source folder(const std::string& dir);
    static Source memory(const TensorMap& tensors);

    /// Ascending.
    const std::vector<std::string>& names() const { return names_; }
    /// The path of the shard that a tensor is in; "" for one in memory.
    std::string file(const std::string& name) const;
    /// How errors name a tensor: `dir/model.safetensors: tensor "a.weight"`.
    std::string where(const std::string& name) const;
    Shape shape(const std::string& name) const;
    /// "F32", "BF16", …, as files name it.
    std::string dtype(const std::string& name) const;
    /// Shares the memory of the source. InputError for a type that no Tensor has.
    Tensor tensor(const std::string& name) const;
    /// A string of the metadata of the file that holds a tensor; "" without.
    std::string metadata(const std::string& name, const std::string& key) const;

  private:
    const SafetensorsFile& file_of(const std::string& name) const;

    std::vector<std::string> names_;
    TensorMap memory_;
    std::string index_;                           // its path, where there is one
    std::map<std::string, std::string> path_of_;  // by tensor
    mutable std::map<std::string, SafetensorsFile> files_;  // by path
};

/// The text of a file. InputError when it cannot be read.
std::string read_text_file(const std::string& path);

}  // namespace moe::checkpoint
