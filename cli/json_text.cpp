#include "cli/json_text.h"

#include <set>
#include <vector>

#include "core/error.h"

namespace moe {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 32;

/// Hears the parts of a text one by one. It comes before the parser that makes a value: a
/// check within that one, at the end of each object, looks at all that stand beside it.
class Watch : public nlohmann::json_sax<json> {
  public:
    explicit Watch(std::string field) : field_(std::move(field)) {}

    bool start_object(std::size_t) override { return opens(); }
    bool start_array(std::size_t) override { return opens(); }
    bool end_object() override { return closes(); }
    bool end_array() override { return closes(); }
    bool key(string_t& name) override {
        if (!names_.back().insert(name).second)
            reject(field_, name, "must stand only once");
        return check_depth();
    }
    bool null() override { return check_depth(); }
    bool boolean(bool) override { return check_depth(); }
    bool number_integer(number_integer_t) override { return check_depth(); }
    bool number_unsigned(number_unsigned_t) override { return check_depth(); }
    bool number_float(number_float_t, const string_t&) override { return check_depth(); }
    bool string(string_t&) override { return check_depth(); }
    bool binary(binary_t&) override { return check_depth(); }
    bool parse_error(std::size_t, const std::string&, const json::exception&) override {
        return false;
    }

  private:
    bool opens() {
        check_depth();
        names_.emplace_back();
        return true;
    }
    bool closes() {
        names_.pop_back();
        return true;
    }
    /// The parser does not recurse, but whoever walks or frees its result does.
    bool check_depth() const {
        if (names_.size() > kMaxDepth)
            reject(field_, "deeply nested JSON",
                   fmt::format("must nest at most {} levels", kMaxDepth));
        return true;
    }

    std::string field_;
    std::vector<std::set<std::string>> names_;  // of each object or array that is open
};

}  // namespace

json parse_json(const std::string& field, const std::string& text) {
    Watch watch(field);
    if (!json::sax_parse(text, &watch))
        reject(
            field,
            json(text.substr(0, 60)).dump(-1, ' ', true, json::error_handler_t::replace),
            "must be JSON");
    return json::parse(text);
}

}  // namespace moe
