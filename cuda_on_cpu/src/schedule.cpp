#include "schedule.h"

#include <charconv>
#include <numeric>

namespace cuda_on_cpu {
namespace {

const char* const kNames[] = {"forward", "reverse", "random", "priority"};

}  // namespace

bool parse_schedule(const std::string& text, Schedule& schedule) {
    const std::size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    Schedule result;
    int policy = 0;
    while (policy < 4 && name != kNames[policy]) ++policy;
    if (policy == 4) return false;
    result.policy = static_cast<Schedule::Policy>(policy);
    const bool seeded = policy >= 2;
    if (seeded != (colon != std::string::npos)) return false;
    if (seeded) {
        const char* end = text.data() + text.size();
        const auto [stop, error] =
            std::from_chars(text.data() + colon + 1, end, result.seed);
        if (error != std::errc() || stop != end) return false;
    }
    schedule = result;
    return true;
}

bool parse_asynchrony(const std::string& text, Asynchrony& asynchrony) {
    const std::string deferred = "deferred";
    Asynchrony result{text.starts_with(deferred), 0};
    if (result.deferred && text.size() > deferred.size()) {
        if (text[deferred.size()] != ':') return false;
        const char *begin = text.data() + deferred.size() + 1,
                   *end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(begin, end, result.seed);
        if (error != std::errc() || stop != end) return false;
    } else if (!result.deferred && text != "eager") {
        return false;
    }
    asynchrony = result;
    return true;
}

std::string to_string(const Asynchrony& asynchrony) {
    if (!asynchrony.deferred) return "eager";
    return "deferred" +
           (asynchrony.seed == 0 ? "" : ":" + std::to_string(asynchrony.seed));
}

std::string to_string(const Schedule& schedule) {
    std::string text = kNames[static_cast<int>(schedule.policy)];
    if (schedule.policy == Schedule::Policy::random ||
        schedule.policy == Schedule::Policy::priority)
        text += ":" + std::to_string(schedule.seed);
    return text;
}

std::uint64_t SplitMix::next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void Turns::start(const Schedule& schedule, int count, std::uint64_t salt) {
    policy_ = schedule.policy;
    random_ = SplitMix(schedule.seed * 0x2545f4914f6cdd1du + salt);
    order_.resize(count);
    if (policy_ == Schedule::Policy::reverse)
        std::iota(order_.rbegin(), order_.rend(), 0);
    else
        std::iota(order_.begin(), order_.end(), 0);
    count_ = count;
    if (policy_ == Schedule::Policy::priority) shuffle();
    start_round();
}

void Turns::start_round() {
    position_ = -1;
    if (policy_ == Schedule::Policy::random) shuffle();
}

void Turns::shuffle() {
    for (int i = count_ - 1; i > 0; --i)
        std::swap(order_[i], order_[random_.below(std::uint64_t(i) + 1)]);
}

int Turns::next_by_priority(const std::uint8_t* may_run) {
    // Rarely, two threads trade places: a laggard may become the leader.
    if (random_.below(64) == 0)
        std::swap(order_[random_.below(count_)], order_[random_.below(count_)]);
    for (int i = 0; i < count_; ++i)
        if (may_run[order_[i]]) return order_[i];
    return -1;
}

std::int64_t block_at(const Schedule& schedule, std::int64_t index, std::int64_t count) {
    if (schedule.policy == Schedule::Policy::forward) return index;
    if (schedule.policy == Schedule::Policy::reverse) return count - 1 - index;
    // index * step + start (mod count) visits every block once when step and count have
    // no common divisor.
    SplitMix random(schedule.seed);
    auto step = static_cast<std::int64_t>(random.below(count)) | 1;
    while (std::gcd(step, count) != 1) step += 2;
    const auto start = static_cast<std::int64_t>(random.below(count));
    return static_cast<std::int64_t>((static_cast<__int128>(index) * step + start) %
                                     count);
}

}  // namespace cuda_on_cpu
