#include "tests/ranks/support.h"

#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/sharding.h"

namespace moe::test {
namespace {

constexpr Placement kDoubles = {MemorySpace::host, DType::f64};

RankRun run_layer(MoELayer& layer, const Tensor& hidden, const Tensor& doutput) {
    RankRun run;
    const RunContext context{.observer = &run.values};
    const auto forward = layer.forward(hidden, {}, context);
    run.output = transfer(forward.output, kDoubles);
    run.gradients = layer.backward(doutput, forward.saved, context);
    for (auto& [name, gradient] : run.gradients.parameters)
        gradient = transfer(gradient, kDoubles);
    run.gradients.hidden_states = transfer(run.gradients.hidden_states, kDoubles);
    return run;
}

/// True when both ranks hold the same shard of the same experts.
bool are_replicas(const RankRun& a, const RankRun& b) {
    return a.groups->ep->rank() == b.groups->ep->rank() &&
           a.groups->expt_tp->rank() == b.groups->expt_tp->rank();
}

}  // namespace

std::string to_string(const Grid& grid) {
    return fmt::format("tp{}_cp{}_ep{}_etp{}_w{}", grid.tp, grid.cp, grid.ep, grid.etp,
                       grid.world);
}

std::vector<Grid> grids() {
    return {{1, 1, 2, 1, 2}, {1, 1, 4, 1, 4}, {1, 1, 8, 1, 8}, {1, 1, 1, 2, 2},
            {1, 1, 2, 2, 4}, {2, 1, 1, 1, 2}, {2, 1, 2, 1, 2}, {2, 1, 1, 2, 2},
            {2, 1, 2, 2, 4}, {2, 1, 2, 2, 8}, {4, 1, 2, 1, 4}, {4, 1, 1, 4, 4},
            {1, 2, 2, 1, 4}, {2, 2, 2, 2, 8}, {1, 1, 2, 1, 6}};
}

MoEConfig on_grid(MoEConfig config, const Grid& grid, const std::string& dispatcher) {
    config.tensor_model_parallel_size = grid.tp;
    config.sequence_parallel = grid.tp > 1;
    config.context_parallel_size = grid.cp;
    config.expert_model_parallel_size = grid.ep;
    config.expert_tensor_parallel_size = grid.etp;
    config.moe_token_dispatcher_type = dispatcher;
    config.finalize();
    return config;
}

std::vector<ComponentSpec> with_dispatcher(std::vector<ComponentSpec> suppliers,
                                           const std::string& dispatcher) {
    const MoEConfig config = on_grid(small_config(), {1, 1, 2, 1, 2}, dispatcher);
    std::erase_if(suppliers, [&](const ComponentSpec& supplier) {
        try {
            find_tier("tier", supplier.tier).check(config);
            return false;
        } catch (const InputError&) {
            return true;
        }
    });
    return suppliers;
}

std::vector<ComponentSpec> grid_suppliers(const std::string& dispatcher) {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const ComponentSpec& s) {
        return s.dtype == DType::bf16 && s.tier != "optimized_gpu";
    });
    return with_dispatcher(suppliers, dispatcher);
}

std::vector<RankRun> run_on_ranks(const MoEConfig& config, const ComponentSpec& supplier,
                                  const TensorMap& parameters,
                                  const std::vector<Tensor>& hidden,
                                  const std::vector<Tensor>& doutput) {
    std::vector<RankRun> runs(hidden.size());
    distributed::run_ranks(int(hidden.size()), [&](distributed::Communicator& world) {
        const int rank = world.rank();
        const auto groups = distributed::make_process_groups(world, config);
        MoELayer layer(config, ModuleSpec::uniform(supplier),
                       distributed::shard_parameters(config, parameters, *groups),
                       groups);
        runs[rank] = run_layer(layer, hidden[rank], doutput[rank]);
        runs[rank].groups = groups;
    });
    return runs;
}

RankRun run_alone(const MoEConfig& config, const TensorMap& parameters,
                  const Tensor& hidden, const Tensor& doutput) {
    MoELayer layer(distributed::single_rank_config(config),
                   ModuleSpec::uniform({"reference_cpu", DType::f64}), parameters);
    return run_layer(layer, hidden, doutput);
}

RankRun run_each_alone(const MoEConfig& config, const TensorMap& parameters,
                       const std::vector<Tensor>& hidden,
                       const std::vector<Tensor>& doutput) {
    RankRun sum;
    std::vector<Tensor> outputs, dhidden;
    for (std::size_t r = 0; r < hidden.size(); ++r) {
        const RankRun run = run_alone(config, parameters, hidden[r], doutput[r]);
        outputs.push_back(run.output);
        dhidden.push_back(run.gradients.hidden_states);
        for (const auto& [name, gradient] : run.gradients.parameters)
            sum.gradients.parameters[name] =
                add(sum.gradients.parameters[name], gradient);
    }
    sum.output = concatenate(outputs);
    sum.gradients.hidden_states = concatenate(dhidden);
    return sum;
}

Tensor concatenate(const std::vector<Tensor>& parts) {
    Shape shape = parts.at(0).shape();
    shape[0] = 0;
    std::vector<double> values;
    for (const Tensor& part : parts) {
        const std::vector<double> more = to_doubles(part);
        values.insert(values.end(), more.begin(), more.end());
        shape[0] += part.dim(0);
    }
    return Tensor::from(shape, values);
}

Tensor add(const Tensor& a, const Tensor& b) {
    std::vector<double> sum = to_doubles(b);
    if (a.defined()) {
        const std::vector<double> more = to_doubles(a);
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
    }
    return Tensor::from(b.shape(), sum);
}

std::vector<TensorMap> reduce_gradients(const std::vector<RankRun>& runs) {
    std::vector<TensorMap> sums(runs.size());
    for (std::size_t r = 0; r < runs.size(); ++r)
        for (const RankRun& other : runs)
            for (const auto& [name, gradient] : other.gradients.parameters) {
                const bool same_shard =
                    name.starts_with("experts.") ? are_replicas(runs[r], other)
                    : name.starts_with("shared_experts.linear")
                        ? runs[r].groups->tp->rank() == other.groups->tp->rank()
                        : true;
                if (same_shard) sums[r][name] = add(sums[r][name], gradient);
            }
    return sums;
}

void expect_whole(const MoEConfig& config, const std::vector<RankRun>& runs,
                  const RankRun& whole, double bound) {
    std::vector<Tensor> outputs, dhidden;
    for (const RankRun& run : runs) {
        outputs.push_back(run.output);
        dhidden.push_back(run.gradients.hidden_states);
    }
    EXPECT_TRUE(Close(concatenate(outputs), whole.output, bound));
    EXPECT_TRUE(Close(concatenate(dhidden), whole.gradients.hidden_states, bound));
    const std::vector<TensorMap> sums = reduce_gradients(runs);
    for (std::size_t r = 0; r < runs.size(); ++r) {
        EXPECT_EQ(sums[r].size(), whole.gradients.parameters.size());
        for (const auto& [name, gradient] : whole.gradients.parameters)
            EXPECT_TRUE(Close(
                sums[r].at(name),
                distributed::shard_parameter(config, name, gradient, *runs[r].groups),
                bound))
                << "rank " << r << ", " << name;
    }
}

std::vector<Holdings> who_holds_what(const MoEConfig& config,
                                     const std::vector<Tensor>& routing_maps) {
    const int EP = int(config.expert_model_parallel_size);
    const int ETP = int(*config.expert_tensor_parallel_size);
    const std::int64_t E = config.num_experts(), L = E / EP;
    const bool tp_first = config.moe_token_dispatcher_type == "alltoall";
    const int world = int(routing_maps.size());

    // Rows of one rank for experts [first, last), by expert and token
    const auto rows_for = [&](int rank, std::int64_t first, std::int64_t last) {
        std::vector<Row> rows;
        const auto* map = routing_maps[rank].data<std::uint8_t>();
        for (std::int64_t e = first; e < last; ++e)
            for (std::int64_t t = 0; t < routing_maps[rank].dim(0); ++t)
                if (map[t * E + e]) rows.push_back({rank, t, e});
        return rows;
    };
    const auto append = [](std::vector<Row>& rows, const std::vector<Row>& more) {
        rows.insert(rows.end(), more.begin(), more.end());
        return std::int64_t(more.size());
    };

    std::vector<Holdings> all(world);
    for (int rank = 0; rank < world; ++rank) {
        // ETP varies fastest, then EP, then the replicas
        const int my_tp = rank % ETP, my_ep = rank / ETP % EP;
        const int first_rank = rank / (ETP * EP) * (ETP * EP);
        const auto rank_at = [&](int tp, int ep) { return first_rank + ep * ETP + tp; };
        const std::int64_t first = my_ep * L;
        Holdings& mine = all[rank];
        for (int ep = 0; ep < EP; ++ep) {
            mine.input_splits.push_back(
                append(mine.sent, rows_for(rank, ep * L, (ep + 1) * L)));
            mine.output_splits.push_back(
                append(mine.received, rows_for(rank_at(my_tp, ep), first, first + L)));
        }
        for (int tp = 0; tp < ETP; ++tp) {
            mine.output_splits_tp.push_back(0);
            for (int ep = 0; ep < EP; ++ep)
                mine.output_splits_tp[tp] +=
                    std::int64_t(rows_for(rank_at(tp, ep), first, first + L).size());
        }
        for (std::int64_t e = first; e < first + L; ++e) {
            mine.tokens_per_expert.push_back(0);
            for (int outer = 0; outer < (tp_first ? ETP : EP); ++outer)
                for (int inner = 0; inner < (tp_first ? EP : ETP); ++inner) {
                    const int source =
                        tp_first ? rank_at(outer, inner) : rank_at(inner, outer);
                    mine.tokens_per_expert.back() +=
                        append(mine.dispatched, rows_for(source, e, e + 1));
                }
        }
    }
    return all;
}

Tensor rows_of(const std::vector<Row>& rows, const std::vector<Tensor>& hidden) {
    const std::int64_t H = hidden.at(0).shape().back();
    std::vector<double> values;
    for (const Row& row : rows) {
        const std::vector<double> x = to_doubles(hidden[row.rank]);
        values.insert(values.end(), &x[row.token * H], &x[row.token * H] + H);
    }
    return Tensor::from({std::int64_t(rows.size()), H}, values);
}

Tensor probs_of(const std::vector<Row>& rows, const std::vector<Tensor>& probs) {
    const std::int64_t E = probs.at(0).dim(1);
    std::vector<double> values;
    for (const Row& row : rows)
        values.push_back(to_doubles(probs[row.rank])[row.token * E + row.expert]);
    return Tensor::from({std::int64_t(rows.size())}, values);
}

}  // namespace moe::test
