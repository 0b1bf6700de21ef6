#include "cli/gpu_check/evidence.h"

#include <filesystem>
#include <regex>

#include "cli/files.h"
#include "cli/info/version.h"
#include "cli/words.h"
#include "core/error.h"
#include "gpu/tensor.h"

namespace moe::gpu_check {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moe-gpu-check-stage";

/// JSON as a file, whole or not at all, also when this process dies now.
void write_json(const std::string& path, const ordered_json& json) {
    const std::string text =
        json.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
    write_file("file", {path, text});
}

std::string two_digits(int number, const std::string& name) {
    return fmt::format("{:02}-{}", number, name);
}

/// The attempt that a file belongs to: "03-tests.2.log" to 2, "03-tests.log" to 1; 0 when
/// it is not the stage's.
int attempt_of(const std::string& file, const std::string& stage) {
    if (!file.starts_with(stage + ".")) return 0;
    const std::string rest = file.substr(stage.size() + 1);
    const std::size_t digits = rest.find_first_not_of("0123456789");
    if (digits == 0 || digits == std::string::npos || digits > 6 || rest[digits] != '.')
        return 1;
    return std::stoi(rest);
}

ordered_json to_json(const Record& record) {
    return {{"format", kFormat},
            {"number", record.number},
            {"stage", record.stage.name},
            {"attempt", record.attempt},
            {"dry", record.dry},
            {"status", record.stage.status},
            {"seconds", record.stage.seconds},
            {"budget", record.budget},
            {"detail", record.stage.detail},
            {"programs", record.programs},
            {"details", record.details},
            {"result", record.result}};
}

Record read_record(const std::string& path) {
    const ordered_json json = parse_json(path, read_file("file", path));
    Record record;
    try {
        if (json.at("format") != kFormat) reject(path, json.at("format").dump(), kFormat);
        record.number = json.at("number");
        record.attempt = json.at("attempt");
        record.dry = json.at("dry");
        record.budget = json.at("budget");
        record.stage = {json.at("stage"), json.at("status"), json.at("seconds"),
                        json.at("detail")};
        record.programs = json.at("programs");
        record.details = json.at("details");
        record.result = json.at("result");
        check_contribution(record.result, path);
    } catch (const nlohmann::json::exception& error) {
        reject("file", path, std::string("must be a stage's record: ") + error.what());
    }
    return record;
}

/// "03-tests.json" and "03-tests.2.json", not "03-tests.gtest.json".
bool is_record(const std::string& name) {
    static const std::regex pattern(R"(\d\d-[a-z]+(\.\d+)?\.json)");
    return std::regex_match(name, pattern);
}

/// A result that nothing has been added to.
bench::Result empty_result(const std::string& created) {
    bench::Result result;
    result.created = created;
    result.kind = gpu::is_emulated() ? "executor" : "gpu";
    result.device = "unknown";
    result.commit = commit();
    return result;
}

}  // namespace

void check_contribution(const ordered_json& fields, const std::string& where) {
    ordered_json whole = bench::to_json(empty_result(utc_now()));
    whole.update(fields);
    const std::string text =
        whole.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    bench::result_from_json(nlohmann::json::parse(text), where);
}

Evidence Evidence::create(const std::string& folder) {
    std::error_code error;
    if (fs::exists(folder, error)) {
        if (!fs::is_directory(folder, error) || !fs::is_empty(folder, error) || error)
            reject("--out", folder,
                   "must be new, or an empty folder; --resume goes on in an old one");
    }
    Evidence evidence(folder);
    evidence.created_ = utc_now();
    evidence.write_result();
    return evidence;
}

Evidence Evidence::resume(const std::string& folder) {
    Evidence evidence(folder);
    std::error_code error;
    if (!fs::is_regular_file(evidence.result_path(), error))
        reject("--out", folder, "must be a folder of gpu-check, for --resume");
    const std::string path = evidence.result_path();
    evidence.created_ =
        bench::result_from_json(parse_json(path, read_file("file", path)), path).created;
    for (const auto& entry : fs::directory_iterator(folder)) {
        const std::string name = entry.path().filename();
        if (!is_record(name)) continue;
        const Record record = read_record(entry.path());
        const auto known = evidence.records_.find(record.number);
        if (known == evidence.records_.end() || known->second.attempt < record.attempt)
            evidence.records_[record.number] = record;
    }
    return evidence;
}

int Evidence::next_attempt(int number, const std::string& name) const {
    int last = 0;
    for (const auto& entry : fs::directory_iterator(folder_))
        last =
            std::max(last, attempt_of(entry.path().filename(), two_digits(number, name)));
    return last + 1;
}

std::string Evidence::stem(int number, const std::string& name, int attempt) const {
    const std::string first = folder_ + "/" + two_digits(number, name);
    return attempt == 1 ? first : fmt::format("{}.{}", first, attempt);
}

void Evidence::add(const Record& record) {
    const std::string path =
        stem(record.number, record.stage.name, record.attempt) + ".json";
    std::error_code error;
    if (fs::exists(path, error)) reject("file", path, "exists already");
    write_json(path, to_json(record));
    records_[record.number] = record;
    write_result();
}

void Evidence::write_result() const {
    bench::Result result = empty_result(created_);
    for (const auto& [number, record] : records_) result.stages.push_back(record.stage);
    ordered_json whole = bench::to_json(result);
    for (const auto& [number, record] : records_) whole.update(record.result);
    write_json(result_path(), whole);
}

}  // namespace moe::gpu_check
