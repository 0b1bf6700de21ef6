#include "distributed/rank_generator.h"

#include <algorithm>
#include <sstream>

#include "core/error.h"

namespace moe::distributed {
namespace {

std::vector<std::string> split_at_dashes(const std::string& text) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, '-');) parts.push_back(part);
    return parts;
}

}  // namespace

ParallelSizes parallel_sizes(const MoEConfig& config, int world) {
    const auto require_divides = [&](const std::string& field, std::int64_t size) {
        if (world % size != 0)
            reject(field, size, fmt::format("must divide the {} ranks", world));
    };
    const std::int64_t tp = config.tensor_model_parallel_size;
    const std::int64_t cp = config.context_parallel_size;
    const std::int64_t ep = config.expert_model_parallel_size;
    const std::int64_t etp = *config.expert_tensor_parallel_size;
    require_divides("tensor_model_parallel_size", tp);
    require_divides("tensor_model_parallel_size * context_parallel_size", tp * cp);
    require_divides("expert_tensor_parallel_size", etp);
    if (world % (etp * ep) != 0)
        reject("expert_tensor_parallel_size * expert_model_parallel_size", etp * ep,
               fmt::format("must divide the {} ranks{}", world,
                           etp > 1 && etp == tp
                               ? "; expert_tensor_parallel_size is "
                                 "tensor_model_parallel_size unless it is given"
                               : ""));
    ParallelSizes sizes;
    sizes.world = world;
    sizes.tensor = int(tp);
    sizes.context = int(cp);
    sizes.expert = int(ep);
    sizes.expert_tensor = int(etp);
    return sizes;
}

RankGenerator::RankGenerator(int tp, int ep, int dp, int pp, int cp,
                             const std::string& order) {
    const std::vector<Axis> known = {
        {"tp", tp}, {"ep", ep}, {"dp", dp}, {"pp", pp}, {"cp", cp}};
    for (const Axis& axis : known)
        if (axis.size < 1) reject(axis.name, axis.size, "must be positive");
    for (const std::string& name : split_at_dashes(order)) {
        const auto same_name = [&](const Axis& axis) { return axis.name == name; };
        const auto found = std::find_if(known.begin(), known.end(), same_name);
        if (found == known.end() || std::any_of(axes_.begin(), axes_.end(), same_name))
            reject("order", order, "must name tp, cp, ep, dp and pp once each");
        axes_.push_back(*found);
    }
    if (axes_.size() != known.size())
        reject("order", order, "must name tp, cp, ep, dp and pp once each");
}

RankGenerator RankGenerator::dense(const ParallelSizes& sizes) {
    return {sizes.tensor, 1, sizes.data(), sizes.pipeline, sizes.context};
}

RankGenerator RankGenerator::experts(const ParallelSizes& sizes) {
    return {sizes.expert_tensor, sizes.expert, sizes.expert_data(), sizes.pipeline, 1};
}

int RankGenerator::world_size() const {
    int size = 1;
    for (const Axis& axis : axes_) size *= axis.size;
    return size;
}

int RankGenerator::number(int rank, const std::string& token, bool in_token) const {
    const std::vector<std::string> names = split_at_dashes(token);
    int result = 0, stride = 1;
    for (const Axis& axis : axes_) {
        const int coordinate = rank % axis.size;
        rank /= axis.size;
        const bool named =
            std::find(names.begin(), names.end(), axis.name) != names.end();
        if (named != in_token) continue;
        result += coordinate * stride;
        stride *= axis.size;
    }
    return result;
}

int RankGenerator::color(int rank, const std::string& token) const {
    return number(rank, token, false);
}

int RankGenerator::key(int rank, const std::string& token) const {
    return number(rank, token, true);
}

int RankGenerator::group_size(const std::string& token) const {
    return key(world_size() - 1, token) + 1;
}

std::vector<std::vector<int>> RankGenerator::get_ranks(const std::string& token) const {
    const int group_size = this->group_size(token);
    std::vector<std::vector<int>> groups(world_size() / group_size,
                                         std::vector<int>(group_size));
    for (int rank = 0; rank < world_size(); ++rank)
        groups[color(rank, token)][key(rank, token)] = rank;
    return groups;
}

}  // namespace moe::distributed
