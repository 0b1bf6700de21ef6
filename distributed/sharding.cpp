#include "distributed/sharding.h"

#include <cstring>

#include "core/parameters.h"

namespace moe::distributed {
namespace {

/// Entries [first, first + count) along one axis of a host tensor.
Tensor slice(const Tensor& source, int axis, std::int64_t first, std::int64_t count) {
    Shape shape = source.shape();
    std::int64_t outer = 1, inner = std::int64_t(size_of(source.dtype()));
    for (int a = 0; a < axis; ++a) outer *= shape[a];
    for (std::size_t a = axis + 1; a < shape.size(); ++a) inner *= shape[a];
    const std::int64_t whole = shape[axis];
    MOE_CHECK(first >= 0 && first + count <= whole);
    shape[axis] = count;
    const Tensor result = Tensor::empty(shape, source.dtype());
    const auto* from = static_cast<const std::byte*>(source.view().bytes);
    auto* to = static_cast<std::byte*>(result.view().bytes);
    if (count > 0)
        for (std::int64_t o = 0; o < outer; ++o)
            std::memcpy(to + o * count * inner, from + (o * whole + first) * inner,
                        count * inner);
    return result;
}

/// Part `rank` of `parts` equal ones along an axis. The axis may hold `blocks` blocks
/// (gate rows, then up rows): each is cut by itself.
Tensor cut(const Tensor& source, int axis, std::int64_t rank, std::int64_t parts,
           std::int64_t blocks = 1) {
    if (parts == 1) return source;
    const std::int64_t block = source.dim(axis) / blocks, share = block / parts;
    if (blocks == 1) return slice(source, axis, rank * share, share);
    // Both halves side by side: view the axis as (blocks, block), cut the inner one
    Shape split = source.shape();
    split[axis] = block;
    split.insert(split.begin() + axis, blocks);
    const Tensor part = slice(source.reshaped(split), axis + 1, rank * share, share);
    Shape joined = source.shape();
    joined[axis] = blocks * share;
    return part.reshaped(joined);
}

}  // namespace

Tensor shard_parameter(const MoEConfig& config, const std::string& name,
                       const Tensor& global, const ProcessGroups& groups) {
    // Blocks of gates and ups in turn are cut as they lie
    const auto halves = [&](const std::optional<std::int64_t>& block) {
        return config.gated_linear_unit && !block ? 2 : 1;
    };
    if (name.starts_with("experts.")) {
        const Communicator &ep = *groups.ep, &etp = *groups.expt_tp;
        const Tensor mine = cut(global, 0, ep.rank(), ep.size());
        if (name.ends_with(".bias")) return mine;  // MoEConfig: only with ETP = 1
        return name.starts_with("experts.linear_fc1")
                   ? cut(mine, 1, etp.rank(), etp.size(),
                         halves(config.moe_mlp_glu_interleave_size))
                   : cut(mine, 2, etp.rank(), etp.size());
    }
    const Communicator& tp = *groups.tp;
    if (name == "shared_experts.linear_fc1.weight")
        return cut(global, 0, tp.rank(), tp.size(),
                   halves(config.moe_shared_expert_glu_interleave_size));
    if (name == "shared_experts.linear_fc2.weight")
        return cut(global, 1, tp.rank(), tp.size());
    return global;
}

TensorMap shard_parameters(const MoEConfig& config, const TensorMap& global,
                           const ProcessGroups& groups) {
    TensorMap shards;
    for (const auto& [name, shape] : parameter_shapes(config))
        if (const auto found = global.find(name); found != global.end())
            shards[name] = shard_parameter(config, name, found->second, groups);
    return shards;
}

MoEConfig single_rank_config(const MoEConfig& of_ranks) {
    MoEConfig config = of_ranks.with_dispatcher("alltoall");
    config.tensor_model_parallel_size = config.context_parallel_size = 1;
    config.expert_model_parallel_size = 1;
    config.expert_tensor_parallel_size = 1;
    config.sequence_parallel = false;
    config.finalize();
    return config;
}

}  // namespace moe::distributed
