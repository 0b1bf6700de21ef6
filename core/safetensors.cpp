#include "core/safetensors.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "core/safetensors_format.h"

namespace moe {
namespace {

using namespace safetensors;

constexpr std::size_t kMaxAxes = 64;
constexpr std::int64_t kMaxInt64 = std::numeric_limits<std::int64_t>::max();
const std::set<std::string> kFields = {"dtype", "shape", "data_offsets"};

/// Bits of an element of each type of the format. Source: safetensors 0.8.0, enum Dtype.
const std::map<std::string, std::int64_t> kBits = {
    {"F64", 64},    {"F32", 32},        {"F16", 16},        {"BF16", 16},
    {"C64", 64},    {"I64", 64},        {"I32", 32},        {"I16", 16},
    {"I8", 8},      {"BOOL", 8},        {"U64", 64},        {"U32", 32},
    {"U16", 16},    {"U8", 8},          {"F8_E4M3", 8},     {"F8_E5M2", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4}};

// ------------------------------------------------------------------ 1. the mapped file

struct Mapping {
    std::shared_ptr<const std::byte> bytes;
    std::int64_t size = 0;
};

// TUTORIAL: mmap() lets the file's bytes appear as memory. Nothing is read before it is
// touched, so taking one tensor from a checkpoint of 100 GB costs that tensor, and all
// programs that map one file share one copy of it. The mapping is private: a page that
// somebody writes to becomes their own, and the file stays as it is.
Mapping map_file(const std::string& path) {
    reject_other_than_file(path);
    using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;
    const File file(std::fopen(path.c_str(), "rbe"), std::fclose);
    require_success(file != nullptr, path, "must be a readable safetensors file");
    struct stat status = {};
    require_success(::fstat(::fileno(file.get()), &status) == 0, path,
                    "must be readable");
    if (status.st_size < kLengthBytes)
        reject(inside(shown_path(path), "file size"), status.st_size,
               "no safetensors file: must be at least 8 bytes, the header length");

    const auto size = static_cast<std::size_t>(status.st_size);
    void* bytes = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_NORESERVE, ::fileno(file.get()), 0);
    require_success(bytes != MAP_FAILED, path, "must be a file that can be mapped");
    const auto unmap = [bytes, size](const std::byte*) { ::munmap(bytes, size); };
    return {{static_cast<const std::byte*>(bytes), unmap}, status.st_size};
}

/// Length of the JSON text in bytes.
std::int64_t read_header_length(const std::string& where, const Mapping& file) {
    std::uint64_t length = 0;
    std::memcpy(&length, file.bytes.get(), sizeof length);
    // TUTORIAL: "8 + length > size" looks the same, but the sum wraps around for a length
    // near 2^64 and lets it pass. Subtract from what is known to be there instead.
    const std::int64_t limit = std::min(file.size - kLengthBytes, kMaxHeaderBytes);
    if (length <= static_cast<std::uint64_t>(limit))
        return static_cast<std::int64_t>(length);
    // Text read as a number is enormous; a file that was cut has its header's beginning.
    const std::string_view start(reinterpret_cast<const char*>(file.bytes.get()),
                                 std::min<std::size_t>(file.size, 16));
    if (length >> 32 != 0 || !start.substr(kLengthBytes).starts_with('{'))
        reject(inside(where, "file"), "begins with " + shown(start),
               "no safetensors file: must begin with the length of its header, 8 bytes, "
               "and the header, JSON");
    reject(inside(where, "header length"), length,
           fmt::format("must be at most {} bytes: the rest of the file, and {}", limit,
                       kMaxHeaderBytes));
}

// ------------------------------------------------------------------ 2. one header entry

Strings read_metadata(const std::string& where, const json& fields) {
    Strings metadata;
    for (const auto& [name, value] : fields.items()) {
        if (!value.is_string())
            reject(inside(where, shown(name)), shown(value), "must be a string");
        metadata.emplace(name, value.get<std::string>());
    }
    return metadata;
}

std::string read_dtype(const std::string& where, const json& value) {
    if (value.is_string() && kBits.contains(value.get<std::string>())) return value;
    std::vector<std::string> known;
    for (const auto& [name, bits] : kBits) known.push_back(name);
    reject(where, shown(value), fmt::format("allowed are {}", fmt::join(known, ", ")));
}

std::vector<std::int64_t> read_integers(const std::string& where, const json& array) {
    const auto is_size = [](const json& value) {
        return value.is_number_unsigned() && value.get<std::uint64_t>() <= kMaxInt64;
    };
    if (!array.is_array() || !std::all_of(array.begin(), array.end(), is_size))
        reject(where, shown(array), "must be an array of integers from 0 to 2^63 - 1");
    return array.get<std::vector<std::int64_t>>();
}

/// Bytes of a tensor. In the check for overflow an axis of 0 counts as 1, so that the
/// product of any axes fits, in any order.
std::int64_t count_bytes(const std::string& where, const Shape& shape,
                         const std::string& dtype) {
    std::int64_t bits = kBits.at(dtype);
    for (std::int64_t size : shape) {
        if (size > kMaxInt64 / bits)
            reject(where, shown(shape), "must multiply to less than 2^63 bits");
        bits *= std::max<std::int64_t>(size, 1);
    }
    if (std::count(shape.begin(), shape.end(), 0) > 0) return 0;
    if (bits % 8 != 0) reject(where, shown(shape), "must fill whole bytes of " + dtype);
    return bits / 8;
}

SafetensorsEntry read_entry(const std::string& where, const json& fields,
                            std::int64_t data_bytes) {
    for (const std::string& field : kFields)
        if (!fields.contains(field))
            reject(inside(where, field), "(absent)", "is required");
    const std::string dtype = read_dtype(inside(where, "dtype"), fields["dtype"]);
    const Shape shape = read_integers(inside(where, "shape"), fields["shape"]);
    const std::int64_t bytes = count_bytes(inside(where, "shape"), shape, dtype);

    const std::string here = inside(where, "data_offsets");
    const std::vector<std::int64_t> offsets = read_integers(here, fields["data_offsets"]);
    if (offsets.size() != 2) reject(here, shown(offsets), "must be [begin, end]");
    const std::int64_t begin = offsets[0], end = offsets[1];
    if (begin > end) reject(here, shown(offsets), "must not end before they begin");
    if (end > data_bytes)
        reject(here, shown(offsets), fmt::format("must end within {} bytes", data_bytes));
    if (end - begin != bytes)
        reject(here, shown(offsets),
               fmt::format("must span {} bytes: {} {}", bytes, dtype, shown(shape)));
    return {dtype, shape, begin, end};
}

// ------------------------------------------------------------------ 3. the whole header

/// Follows the parser through {"name": {"field": value or [values]}}, reads each entry
/// when it is complete and rejects every other structure where it starts.
///
/// TUTORIAL: left alone, the parser would build one document of the whole header. This
/// way 100 MB of opening brackets cost no memory, and names that appear twice are seen,
/// of which a finished document silently keeps the last.
struct HeaderReader {
    std::string where;
    std::int64_t data_bytes = 0;
    Strings metadata = {};
    std::map<std::string, SafetensorsEntry> entries = {};

    std::string name = {}, field = {};  // where the parser is
    std::set<std::string> names_seen = {}, fields_seen = {};
    std::size_t array_size = 0;

    /// @param depth   1 among names, 2 among the fields of an entry, 3 in a field's array
    /// @param parsed  the key, the value, or the finished array or object
    /// Returns whether the parser shall keep what it has parsed.
    bool operator()(int depth, json::parse_event_t event, const json& parsed) {
        using Event = json::parse_event_t;
        if (event == Event::key) read_key(depth, parsed.get<std::string>());
        if (event == Event::object_start && depth > 1) reject_at(depth, "an object");
        if (event == Event::array_start && depth != 2) reject_at(depth, "an array");
        if (event == Event::value && depth == 1) reject_at(depth, shown(parsed));
        if (event == Event::value && depth == 3 && ++array_size > kMaxAxes)
            reject_at(depth, fmt::format("over {} numbers", kMaxAxes));
        const bool entry_done = event == Event::object_end && depth == 1;
        if (entry_done) keep_entry(parsed);
        return !entry_done;
    }

  private:
    void read_key(int depth, const std::string& key) {
        (depth == 1 ? name : field) = key;
        if (depth == 1) fields_seen.clear();
        array_size = 0;
        if (!(depth == 1 ? names_seen : fields_seen).insert(key).second)
            reject_at(depth, "given twice");
        if (depth == 2 && name != kMetadata && !kFields.contains(key))
            reject(inside(inside_entry(where, name), "field"), shown(key),
                   "allowed are dtype, shape, data_offsets");
    }
    void keep_entry(const json& fields) {
        const std::string here = inside_entry(where, name);
        if (name == kMetadata)
            metadata = read_metadata(here, fields);
        else
            entries[name] = read_entry(here, fields, data_bytes);
    }
    [[noreturn]] void reject_at(int depth, const std::string& found) const {
        const std::string entry = inside_entry(where, name);
        if (depth == 1) reject(entry, found, "must be one object");
        reject(inside(entry, shown(field)), found,
               fmt::format("must be one value or one array of at most {}", kMaxAxes));
    }
};

HeaderReader read_header(const std::string& where, std::string_view text,
                         std::int64_t data_bytes) {
    const auto reject_text = [&](const std::string& found) {
        reject(inside(where, "header"), found, "must be a JSON object in UTF-8");
    };
    // The parser would skip a byte order mark, and take a zero byte for the end.
    if (!text.starts_with('{')) reject_text("begins with " + shown(text.substr(0, 20)));
    if (text.find('\0') != text.npos) reject_text("holds a zero byte");
    HeaderReader reader{where, data_bytes};
    try {
        const json rest = json::parse(text, std::ref(reader));
        MOE_CHECK(rest.empty());
    } catch (const json::exception& error) {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
        const std::string_view what = error.what();
        reject_text(shown(what.substr(what.find("] ") + 2), 200));
    }
    return reader;
}

/// The tensors must cover the data exactly: no byte twice, none left over.
void check_coverage(const HeaderReader& header) {
    std::vector<std::tuple<std::int64_t, std::int64_t, std::string>> ranges;
    for (const auto& [name, entry] : header.entries)
        ranges.emplace_back(entry.begin, entry.end, name);
    std::sort(ranges.begin(), ranges.end());

    std::int64_t covered = 0;
    for (const auto& [begin, end, name] : ranges) {
        if (begin != covered)
            reject(
                inside(inside_entry(header.where, name), "data_offsets"),
                fmt::format("[{},{}]", begin, end),
                fmt::format("must begin at {}, where the tensor before ends", covered));
        covered = end;
    }
    if (covered != header.data_bytes)
        reject(inside(header.where, "data size"), header.data_bytes,
               fmt::format("must be {} bytes, where the last tensor ends", covered));
}

}  // namespace

// ------------------------------------------------------------------ 4. what others call

SafetensorsFile SafetensorsFile::open(const std::string& path) {
    const Mapping mapping = map_file(path);
    const std::string where = shown_path(path);
    const std::int64_t length = read_header_length(where, mapping);
    const std::byte* text = mapping.bytes.get() + kLengthBytes;
    HeaderReader header = read_header(
        where, {reinterpret_cast<const char*>(text), static_cast<std::size_t>(length)},
        mapping.size - kLengthBytes - length);
    check_coverage(header);

    SafetensorsFile file;
    file.path_ = path;
    file.metadata_ = std::move(header.metadata);
    file.entries_ = std::move(header.entries);
    file.data_ = {mapping.bytes, text + length};
    return file;
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> list;
    for (const auto& [name, stored] : entries_) list.push_back(name);
    return list;
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end())
        reject(inside_entry(shown_path(path_), name), "(absent)", "is not in the file");
    return found->second;
}

DType SafetensorsFile::readable_dtype(const std::string& name) const {
    const std::string& dtype = entry(name).dtype;
    const auto has_name = [&](const auto& type) { return type.first == dtype; };
    const auto type = std::find_if(kReadable.begin(), kReadable.end(), has_name);
    if (type == kReadable.end())
        reject(inside(inside_entry(shown_path(path_), name), "dtype"), dtype,
               "readable are F64, F32, BF16, I64, I32, U8 and BOOL");
    return type->second;
}

Tensor SafetensorsFile::tensor(const std::string& name) const {
    const SafetensorsEntry& stored = entry(name);
    Tensor result = Tensor::empty(stored.shape, readable_dtype(name));
    std::memcpy(result.view().bytes, data_.get() + stored.begin, result.size_bytes());
    return result;
}

Tensor SafetensorsFile::mapped(const std::string& name) const {
    const SafetensorsEntry& stored = entry(name);
    const DType dtype = readable_dtype(name);
    const std::byte* bytes = data_.get() + stored.begin;
    if (reinterpret_cast<std::uintptr_t>(bytes) % size_of(dtype) != 0)
        return tensor(name);
    const std::shared_ptr<std::byte> owner = std::const_pointer_cast<std::byte>(data_);
    return Tensor::borrow({const_cast<std::byte*>(bytes), dtype, stored.shape}, owner);
}

}  // namespace moe
