// auxiliary_losses.cu: the losses and their gradients, from what routing summed up.

#include <algorithm>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/load_balancing.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

LossRule make_loss_rule(const MoEConfig& config, std::int64_t micro_batch, int tp_cp_size,
                        bool has_mask) {
    LossRule rule;
    rule.num_experts = int(config.num_experts());
    rule.topk = int(config.moe_router_topk);
    rule.num_sequences = int(std::max<std::int64_t>(micro_batch, 1));
    rule.aux_loss_coeff = config.aux_loss_coeff("aux_loss");
    rule.seq_aux_loss_coeff = config.aux_loss_coeff("seq_aux_loss");
    rule.global_aux_loss_coeff = config.aux_loss_coeff("global_aux_loss");
    rule.has_z_loss = config.moe_z_loss_coeff.has_value();
    rule.z_loss_coeff = config.moe_z_loss_coeff.value_or(0.0);
    rule.per_token = config.calculate_per_token_loss;
    rule.num_ranks = tp_cp_size;
    rule.has_mask = has_mask;
    return rule;
}

//! [auxiliary_losses]
namespace {

/// Parts of a block's columns, each a warp's.
constexpr int kSegments = 32;

/// What the losses add up over experts and populations; all are linear in the scores.
struct LossSums {
    double squares = 0.0, aux = 0.0, seq_aux = 0.0, global_aux = 0.0;

    __device__ void add(const LossSums& other) {
        squares += other.squares;
        aux += other.aux;
        seq_aux += other.seq_aux;
        global_aux += other.global_aux;
    }
    /// Over the lanes of a warp.
    __device__ LossSums over_warp() const {
        return {warp_sum(squares), warp_sum(aux), warp_sum(seq_aux),
                warp_sum(global_aux)};
    }
};

struct LossPointers {
    const int* num_valid;                     // of this rank
    const int *assignments, *num_tokens;      // of all that share its sequences
    const int *all_assignments, *all_tokens;  // and of all
    const float *partial_scores, *partial_squares;
    int* blocks_done;
    double* global_counts;  // or null
    LossSums* block_sums;
    double* values;
    float *dscores, *z_scale;  // each null without its losses
};

struct LossSmem {
    double sums[kSegments][kLanes + 1];
    int counts[kSegments][kLanes + 1], all_counts[kSegments][kLanes + 1];
    bool is_last;
};

/// E / (K N²), where every one of the N tokens was counted K times; 0 without tokens.
__device__ double per_square(const LossRule& rule, double num_tokens) {
    return num_tokens > 0.0 ? rule.num_experts / (rule.topk * num_tokens * num_tokens)
                            : 0.0;
}

/// The sum of a column in the thread's share of the routing blocks of population
/// blockIdx.y. Columns are the experts, and behind them the squares.
__device__ double sum_partials(const LossPointers& of, int column, int E,
                               int num_blocks) {
    const int share = (num_blocks + kSegments - 1) / kSegments;
    const int begin = int(threadIdx.y) * share, end = min(begin + share, num_blocks);
    const std::int64_t first = std::int64_t(blockIdx.y) * num_blocks;
    double sum = 0.0;
    if (column < E && of.dscores != nullptr)
        for (int i = begin; i < end; ++i)
            sum += double(of.partial_scores[(first + i) * E + column]);
    else if (column == E)
        for (int i = begin; i < end; ++i) sum += double(of.partial_squares[first + i]);
    return sum;
}

/// How often an expert was chosen in the thread's share of the populations.
__device__ int count_assignments(const int* assignments, int expert, int E) {
    int count = 0;
    if (expert < E && assignments != nullptr)
        for (int b = int(threadIdx.y); b < int(gridDim.y); b += kSegments)
            count += assignments[b * E + expert];
    return count;
}

/// One expert's part of the load-balancing losses by population blockIdx.y; writes its
/// dscores. A loss is linear in the scores, so its gradient is its factor, the same for
/// every token of a population; counts have no gradient.
/// @param count, all_count  of its tokens in all populations
__device__ LossSums losses_of_expert(const LossPointers& of, const LossRule& rule,
                                     int expert, double count, double all_count,
                                     double score_sum) {
    const int E = rule.num_experts, B = rule.num_sequences;
    const double tokens = *of.num_tokens, valid = *of.num_valid;
    const std::int64_t i = std::int64_t(blockIdx.y) * E + expert;
    const double aux = per_square(rule, tokens) * count;
    const double seq_aux = per_square(rule, tokens / B) / B * of.assignments[i];
    double global_aux = 0.0, attach_global = 0.0;
    if (of.global_counts != nullptr) {  // to which finish() adds this micro-batch
        global_aux = per_square(rule, *of.all_tokens) / (of.global_counts[E] + 1.0) *
                     (of.global_counts[expert] + all_count);
        attach_global = rule.attach_balancing(valid, *of.all_tokens);
    }
    of.dscores[i] =
        float(rule.attach_balancing(valid, tokens) *
                  (rule.aux_loss_coeff * aux + rule.seq_aux_loss_coeff * seq_aux) +
              attach_global * rule.global_aux_loss_coeff * global_aux);
    return {0.0, aux * score_sum, seq_aux * score_sum, global_aux * score_sum};
}

/// Losses that there are, in the order of their names.
__device__ void store_losses(const LossPointers& to, const LossRule& rule,
                             const LossSums& sums) {
    const double valid = *to.num_valid, count = valid > 1.0 ? valid : 1.0;
    double* value = to.values;
    if (rule.has_z_loss) {
        const double coeff = rule.z_loss_coeff / rule.num_ranks;
        *to.z_scale = float(coeff * rule.attach(valid) / count);
        *value++ = sums.squares / count;
    }
    if (rule.aux_loss_coeff > 0.0) *value++ = sums.aux;
    if (rule.seq_aux_loss_coeff > 0.0) *value++ = sums.seq_aux;
    if (rule.global_aux_loss_coeff > 0.0) *value++ = sums.global_aux;
}

/// What the last block does: the sums of all blocks in their order, whichever it is.
__device__ void finish(const LossPointers& to, const LossRule& rule, int num_blocks) {
    const int E = rule.num_experts, lane = int(threadIdx.x);
    const int thread = int(threadIdx.y) * kLanes + lane;
    if (to.global_counts != nullptr)
        for (int e = thread; e < E; e += kLanes * kSegments) {
            int count = 0;
            for (int b = 0; b < int(gridDim.y); ++b)
                count += to.all_assignments[b * E + e];
            to.global_counts[e] += count;
        }
    if (threadIdx.y != 0) return;
    LossSums sums;
    for (int i = lane; i < num_blocks; i += kLanes) sums.add(to.block_sums[i]);
    sums = sums.over_warp();
    if (lane != 0) return;
    store_losses(to, rule, sums);
    if (to.global_counts != nullptr) to.global_counts[E] += 1.0;
    atomicExch(to.blocks_done, 0);  // for the next time
}

/// A block for 32 columns, one for each lane, and a population; each warp has its share
/// of the routing blocks.
__global__ void __launch_bounds__(kLanes* kSegments)
    auxiliary_losses_kernel(LossPointers of, LossRule rule, int num_blocks) {
    const int E = rule.num_experts, lane = int(threadIdx.x), warp = int(threadIdx.y);
    const int column = int(blockIdx.x) * kLanes + lane;
    const int blocks = int(gridDim.x * gridDim.y);
    auto& smem = gpu::shared_memory<LossSmem>();
    smem.sums[warp][lane] = sum_partials(of, column, E, num_blocks);
    smem.counts[warp][lane] = count_assignments(of.assignments, column, E);
    smem.all_counts[warp][lane] = count_assignments(of.all_assignments, column, E);
    __syncthreads();
    if (warp == 0) {
        double sum = 0.0;
        int count = 0, all_count = 0;
        for (int i = 0; i < kSegments; ++i) {
            sum += smem.sums[i][lane];
            count += smem.counts[i][lane];
            all_count += smem.all_counts[i][lane];
        }
        LossSums mine;
        if (column < E && of.dscores != nullptr)
            mine = losses_of_expert(of, rule, column, count, all_count, sum);
        else if (column == E)
            mine.squares = sum;
        mine = mine.over_warp();
        __syncwarp();
        if (lane == 0) {
            // TUTORIAL: a block cannot wait for others, but the one that counts last
            // knows that all are done. The fences see to it that what a block wrote is
            // there before it counts, and is read after.
            of.block_sums[blockIdx.y * gridDim.x + blockIdx.x] = mine;
            __threadfence();
            smem.is_last = atomicAdd(of.blocks_done, 1) == blocks - 1;
            __threadfence();
        }
    }
    __syncthreads();
    if (smem.is_last) finish(of, rule, blocks);
}

/// In the order in which store_losses() stores.
std::vector<std::string> names_of(const LossRule& rule) {
    std::vector<std::string> names;
    if (rule.has_z_loss) names.push_back("z_loss");
    if (rule.aux_loss_coeff > 0.0) names.push_back("load_balancing_loss");
    if (rule.seq_aux_loss_coeff > 0.0) names.push_back("seq_load_balancing_loss");
    if (rule.global_aux_loss_coeff > 0.0) names.push_back("global_load_balancing_loss");
    return names;
}

}  // namespace

AuxiliaryLosses auxiliary_losses(const LossStatistics& statistics, Tensor& global_counts,
                                 const LossRule& rule, cudaStream_t stream) {
    AuxiliaryLosses losses;
    losses.names = names_of(rule);
    if (losses.names.empty()) return losses;
    const std::int64_t E = rule.num_experts, P = statistics.assignments.dim(0);
    const std::int64_t num_partials = statistics.partial_squares.numel();
    const bool has_global = rule.global_aux_loss_coeff > 0.0;
    MOE_CHECK_EQ(statistics.assignments.dim(1), E);
    MOE_CHECK_EQ(statistics.partial_scores.numel(), num_partials * E);
    MOE_CHECK_EQ(num_partials % P, 0);
    MOE_CHECK(rule.seq_aux_loss_coeff == 0.0 || P == rule.num_sequences);
    MOE_CHECK(!has_global || global_counts.numel() == E + 1);

    const dim3 grid(unsigned((E + 1 + kLanes - 1) / kLanes), unsigned(P));
    losses.values = gpu::device_empty<double>({std::int64_t(losses.names.size())});
    losses.block_sums = gpu::device_empty<double>({grid.x * grid.y, 4});
    if (rule.has_balancing()) losses.dscores = gpu::device_empty<float>({P, E});
    if (rule.has_z_loss) losses.z_scale = gpu::device_empty<float>({1});
    Tensor blocks_done = statistics.blocks_done;
    const auto or_own = [](const Tensor& sums, const Tensor& own) {
        return gpu::device_data<int>(sums.defined() ? sums : own);
    };
    const bool has_counts = losses.dscores.defined();
    const LossPointers pointers = {
        gpu::device_data<int>(statistics.num_valid),
        has_counts ? or_own(statistics.tp_cp_assignments, statistics.assignments)
                   : nullptr,
        or_own(statistics.tp_cp_valid, statistics.num_valid),
        has_global ? or_own(statistics.tp_dp_cp_assignments, statistics.assignments)
                   : nullptr,
        or_own(statistics.tp_dp_cp_valid, statistics.num_valid),
        gpu::device_data<float>(statistics.partial_scores),
        gpu::device_data<float>(statistics.partial_squares),
        gpu::device_data<int>(blocks_done),
        has_global ? gpu::device_data<double>(global_counts) : nullptr,
        reinterpret_cast<LossSums*>(gpu::device_data<double>(losses.block_sums)),
        gpu::device_data<double>(losses.values),
        gpu::device_data<float>(losses.dscores),
        gpu::device_data<float>(losses.z_scale),
    };
    gpu::launch("auxiliary_losses_kernel", auxiliary_losses_kernel,
                {grid, dim3(kLanes, kSegments), sizeof(LossSmem), stream}, pointers, rule,
                int(num_partials / P));
    return losses;
}
//! [auxiliary_losses]

}  // namespace moe::optimized
