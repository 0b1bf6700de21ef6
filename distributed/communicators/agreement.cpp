#include "distributed/communicators/agreement.h"

#include <algorithm>

namespace moe::distributed {
namespace {

std::string unmatched_rows(const std::string& group, const std::vector<int>& members,
                           const std::vector<Offer>& offers) {
    for (std::size_t from = 0; from < offers.size(); ++from)
        for (std::size_t to = 0; to < offers.size(); ++to)
            if (offers[from].sent[to] != offers[to].received[from])
                return fmt::format(
                    "{} on group {}: rank {} sends {} rows to rank {}, which expects {}",
                    offers[from].operation, group, members[from], offers[from].sent[to],
                    members[to], offers[to].received[from]);
    return {};
}

}  // namespace

std::string disagreement(const std::string& group, const std::vector<int>& members,
                         const std::vector<Offer>& offers) {
    const Offer& first = offers[0];
    for (std::size_t r = 1; r < offers.size(); ++r)
        if (offers[r].operation != first.operation)
            return fmt::format("group {}: rank {} called {} while rank {} called {}",
                               group, members[0], first.operation, members[r],
                               offers[r].operation);
    const bool all_to_all = !first.sent.empty();
    for (std::size_t r = 1; r < offers.size(); ++r) {
        const char* what = offers[r].root != first.root     ? "root"
                           : offers[r].bytes != first.bytes ? "bytes"
                           : !all_to_all && offers[r].received != first.received
                               ? "rows"
                               : nullptr;
        if (what != nullptr)
            return fmt::format("{} on group {}: ranks {} and {} differ in {}",
                               first.operation, group, members[0], members[r], what);
    }
    return all_to_all ? unmatched_rows(group, members, offers) : std::string();
}

std::vector<int> ranks_of_part(const std::vector<Offer>& offers, int rank) {
    std::vector<int> ranks;
    for (std::size_t r = 0; r < offers.size(); ++r)
        if (offers[r].color == offers[rank].color) ranks.push_back(int(r));
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](int a, int b) { return offers[a].key < offers[b].key; });
    return ranks;
}

int color_of_part(const std::vector<int>& ranks) {
    return *std::min_element(ranks.begin(), ranks.end());
}

std::string failure_line(int world_rank, const Operation& operation,
                         const std::string& why) {
    return one_line(
        fmt::format("rank {}: {} failed: {}", world_rank, to_string(operation), why));
}

}  // namespace moe::distributed
