// asked.cpp: the layer once more, narrow and unwatched.

#include "cli/ranks/asked.h"

#include "cli/compare/given.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

/// @param shards  into which the width is cut
std::int64_t narrow(std::int64_t width, std::int64_t shards) {
    const std::int64_t part = width / shards;
    return shards * (part < 256 ? part : 192 + part % 64);
}

/// The job's own where the narrow layer has them in the same shape: so the router
/// chooses the same experts.
TensorMap narrow_parameters(const RankJob& job, const MoEConfig& config) {
    TensorMap parameters = random_parameters(distributed::single_rank_config(config), 1);
    for (auto& [name, parameter] : parameters)
        if (const Tensor& own = job.parameters.at(name); own.shape() == parameter.shape())
            parameter = own;
    return parameters;
}

}  // namespace

MoEConfig narrowed(const MoEConfig& config) {
    MoEConfig result = config;
    // Interleaved blocks would have to divide the new width
    if (!config.moe_mlp_glu_interleave_size)
        result.moe_ffn_hidden_size =
            narrow(config.ffn(), *config.expert_tensor_parallel_size);
    if (config.shared_ffn() > 0 && !config.moe_shared_expert_glu_interleave_size)
        result.moe_shared_expert_intermediate_size =
            narrow(config.shared_ffn(), config.tensor_model_parallel_size);
    result.finalize();
    return result;
}

Asked count_asked(const RankJob& job, const RankTokens& tokens, const GroupsPtr& groups) {
    const MoEConfig config = narrowed(job.config);
    MoELayer layer(
        config, job.spec,
        distributed::shard_parameters(config, narrow_parameters(job, config), *groups),
        groups);
    const ComponentSpec& dispatcher = layer.spec().dispatcher;
    const Placement placement = {find_tier("spec", dispatcher.tier).memory_space(),
                                 dispatcher.dtype};
    const auto& mine = tokens.of_rank[groups->world->rank()];
    const Shape shape = {tokens.seq_len, tokens.micro_batch, config.hidden_size};
    const auto place = [&](const Tensor& whole) {
        return transfer(take_rows(whole, mine).reshaped(shape), placement);
    };
    const Tensor hidden = place(job.hidden), doutput = place(job.doutput);
    RunContext context = job.context();
    const RankInput given = job.take(mine);
    context.token_ids = by_sequence(given.token_ids, tokens.seq_len, tokens.micro_batch);
    context.target_topk_idx = given.target_topk_idx;
    layer.backward(doutput, layer.forward(hidden, {}, context).saved, context);
    gpu::DeviceLog log;
    const gpu::ThreadCounters before = gpu::thread_counters();
    const auto forward = layer.forward(hidden, {}, context);
    log.begin_backward();
    layer.backward(doutput, forward.saved, context);
    return {gpu::thread_counters() - before, log.entries()};
}

}  // namespace moe
