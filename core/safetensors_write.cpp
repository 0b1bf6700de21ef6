// safetensors_write.cpp: save tensors; reading them is in safetensors.cpp.

#include <unistd.h>

#include <cstdio>
#include <tuple>

#include "core/safetensors.h"
#include "core/safetensors_format.h"
#include "core/transfer.h"

namespace moe {
namespace {

using namespace safetensors;

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

/// Wide types first, so that each is aligned without padding, which the format forbids;
/// by name within a type.
NamedTensors in_file_order(const TensorMap& tensors) {
    for (const auto& [name, tensor] : tensors) MOE_CHECK(tensor.defined());
    NamedTensors order(tensors.begin(), tensors.end());
    std::stable_sort(order.begin(), order.end(), [](const auto& left, const auto& right) {
        return size_of(left.second.dtype()) > size_of(right.second.dtype());
    });
    return order;
}

/// The text itself. Throws InputError unless it is UTF-8.
std::string utf8(const std::string& where, const std::string& text) {
    try {
        std::ignore = json(text).dump();
    } catch (const json::exception&) {
        reject(where, shown(text), "must be UTF-8");
    }
    return text;
}

/// The header's length and text, which ends in spaces so that the data starts 8-aligned.
std::string header_bytes(const std::string& where, const NamedTensors& tensors,
                         const Strings& metadata) {
    json header = json::object();
    for (const auto& [name, text] : metadata)
        header[kMetadata][utf8(inside(where, kMetadata), name)] =
            utf8(inside(inside(where, kMetadata), shown(name)), text);

    std::size_t begin = 0;
    for (const auto& [name, tensor] : tensors) {
        if (name == kMetadata)
            reject(inside(where, "tensor"), name, "is a reserved name");
        const auto has_dtype = [dtype = tensor.dtype()](const auto& candidate) {
            return candidate.second == dtype;
        };
        const auto type = std::find_if(kReadable.begin(), kReadable.end(), has_dtype);
        const std::size_t end = begin + tensor.size_bytes();
        header[utf8(inside(where, "tensor"), name)] = {{"dtype", type->first},
                                                       {"shape", tensor.shape()},
                                                       {"data_offsets", {begin, end}}};
        begin = end;
    }

    std::string text = header.dump();
    while (text.size() % kLengthBytes != 0) text += ' ';
    const std::uint64_t length = text.size();
    if (length > kMaxHeaderBytes)
        reject(inside(where, "header length"), length,
               fmt::format("must be at most {} bytes", kMaxHeaderBytes));
    return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

/// A new file beside `path` that takes its place at commit(), or goes away.
///
/// TUTORIAL: rename() within a folder moves a name from one file to another in one step.
/// Writing to `path` itself would leave half a file after a crash, and change the bytes
/// under a program that has the old file mapped.
class ReplacementFile {
  public:
    explicit ReplacementFile(const std::string& path) : path_(path) {
        reject_other_than_file(path);
        // "x" fails where the name is taken: by another thread, or since a crash.
        for (int attempt = 0; file_ == nullptr && attempt < 100; ++attempt) {
            temporary_ = fmt::format("{}.{}-{}.tmp", path, ::getpid(), attempt);
            file_ = std::fopen(temporary_.c_str(), "wbxe");
            if (file_ == nullptr && errno != EEXIST) break;
        }
        require(file_ != nullptr);
    }
    ReplacementFile(const ReplacementFile&) = delete;
    ~ReplacementFile() {
        if (file_ != nullptr) std::fclose(file_);
        if (!committed_) std::remove(temporary_.c_str());
    }

    void write(const void* bytes, std::size_t count) {
        require(std::fwrite(bytes, 1, count, file_) == count);
    }
    void commit() {
        require(std::fflush(file_) == 0 && ::fsync(::fileno(file_)) == 0);
        require(std::fclose(std::exchange(file_, nullptr)) == 0);
        require(std::rename(temporary_.c_str(), path_.c_str()) == 0);
        committed_ = true;
    }

  private:
    void require(bool success) const {
        require_success(success, path_, "must be in a folder that can be written to");
    }

    std::string path_, temporary_;
    std::FILE* file_ = nullptr;
    bool committed_ = false;
};

}  // namespace

void save_safetensors(const std::string& path, const TensorMap& tensors,
                      const Strings& metadata) {
    const NamedTensors order = in_file_order(tensors);
    const std::string header = header_bytes(shown_path(path), order, metadata);
    ReplacementFile file(path);
    file.write(header.data(), header.size());
    for (const auto& [name, tensor] : order) {
        const Tensor on_host = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        file.write(on_host.view().bytes, on_host.size_bytes());
    }
    file.commit();
}

}  // namespace moe
