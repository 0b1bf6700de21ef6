/// @file
/// The folder that `moe gpu-check` leaves: files of every stage, and result.json, which
/// merges them. A file is never overwritten, except result.json: a stage that runs again
/// writes NN-name.2.json beside NN-name.json.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "bench/result.h"

namespace moe::gpu_check {

/// A stage's file, NN-name.json.
struct Record {
    int number = 0;  ///< of the stage, from 1
    int attempt = 1;
    bool dry = false;
    double budget = 0.0;
    bench::Stage stage;
    nlohmann::ordered_json programs = nlohmann::ordered_json::array();
    nlohmann::ordered_json details, result;  ///< see Finding
};

class Evidence {
  public:
    /// Makes the folder. InputError when there is something in it already.
    static Evidence create(const std::string& folder);
    /// A folder of before. InputError when it is none.
    static Evidence resume(const std::string& folder);

    /// The last record of each stage that has one, by the stage's number.
    const std::map<int, Record>& records() const { return records_; }

    /// The number of a stage's next attempt, and what its files' names begin with.
    int next_attempt(int number, const std::string& name) const;
    std::string stem(int number, const std::string& name, int attempt) const;

    /// Writes the record's own file, then result.json anew. What the record adds to the
    /// result must be right (see check_contribution()).
    void add(const Record& record);

    /// "DIR/result.json".
    std::string result_path() const { return folder_ + "/result.json"; }

  private:
    explicit Evidence(std::string folder) : folder_(std::move(folder)) {}
    void write_result() const;

    std::string folder_, created_;
    std::map<int, Record> records_;
};

/// InputError, naming `where`, when these fields do not belong into a result.
void check_contribution(const nlohmann::ordered_json& fields, const std::string& where);

}  // namespace moe::gpu_check
