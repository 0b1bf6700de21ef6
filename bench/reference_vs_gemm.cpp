// reference_vs_gemm.cpp: what the layer costs beyond its matrix products.
//
// Forward and backward of the whole layer, fp32, as a ratio to the time of the same
// products done plainly by Eigen on the same threads: per expert its rows x H x F, three
// forward, six backward. Both are timed in one run, in turns, so that the machine's mood
// cancels out.
//
//     build/host/bench/moe_bench_reference [repeats]

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/tier.h"

namespace moe {
namespace {

struct Shapes {
    std::int64_t T, E, K, H, F;
};

double seconds_of(const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
        .count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

MoEConfig swiglu_config(const Shapes& shapes) {
    MoEConfig config;
    config.hidden_size = shapes.H;
    config.num_moe_experts = shapes.E;
    config.moe_router_topk = shapes.K;
    config.moe_ffn_hidden_size = shapes.F;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_token_dispatcher_type = "alltoall";
    config.finalize();
    return config;
}

Tensor normal(const Shape& shape, std::uint64_t stream) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(1234, stream);
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] = static_cast<float>(rng.normal(i));
    return tensor;
}

/// The nine products of each expert, one expert per thread at a time.
class PlainGemms {
  public:
    PlainGemms(const Shapes& shapes, const std::vector<std::int64_t>& rows) : s_(shapes) {
        for (std::int64_t count : rows) {
            x_.push_back(cpu::Matrix<float>::Random(count, s_.H));
            h_.push_back(cpu::Matrix<float>::Random(count, s_.F));
            w_.push_back(cpu::Matrix<float>::Random(s_.F, s_.H));
        }
    }

    void run() {
        const auto experts = static_cast<std::int64_t>(x_.size());
#pragma omp parallel for schedule(dynamic)
        for (std::int64_t e = 0; e < experts; ++e) {
            cpu::Matrix<float> to_ffn(x_[e].rows(), s_.F), to_hidden(x_[e].rows(), s_.H);
            cpu::Matrix<float> weight(s_.F, s_.H);
            for (int gate_up_or_down = 0; gate_up_or_down < 3; ++gate_up_or_down) {
                to_ffn.noalias() = x_[e] * w_[e].transpose();  // forward
                to_hidden.noalias() = h_[e] * w_[e];           // backward: input
                weight.noalias() = h_[e].transpose() * x_[e];  // backward: weight
            }
        }
    }

  private:
    Shapes s_;
    std::vector<cpu::Matrix<float>> x_, h_, w_;
};

void measure(const Shapes& s, int repeats) {
    const MoEConfig config = swiglu_config(s);
    const TensorMap parameters = random_parameters(config, 1);
    MoELayer layer(config, ModuleSpec{}, parameters);
    const Tensor hidden = normal({s.T, 1, s.H}, 1), doutput = normal({s.T, 1, s.H}, 2);

    struct Counts : Observer {
        void on_value(Step, const std::string& name, const TensorView& view) override {
            if (name == "tokens_per_expert")
                rows.assign(view.data<std::int64_t>(),
                            view.data<std::int64_t>() + view.numel());
        }
        std::vector<std::int64_t> rows;
    } counts;
    layer.forward(hidden, {}, RunContext{.observer = &counts});
    PlainGemms gemms(s, counts.rows);

    std::vector<double> layer_seconds, gemm_seconds, ratios;
    for (int repeat = 0; repeat <= repeats; ++repeat) {
        const double gemm = seconds_of([&] { gemms.run(); });
        const double whole = seconds_of([&] {
            auto forward = layer.forward(hidden, {}, {});
            layer.backward(doutput, forward.saved, {});
        });
        if (repeat == 0) continue;  // warm-up
        layer_seconds.push_back(whole);
        gemm_seconds.push_back(gemm);
        ratios.push_back(whole / gemm);
    }
    const double flops = 9.0 * 2.0 * double(s.T * s.K) * double(s.H) * double(s.F);
    fmt::print(
        "T={} E={} K={} H={} F={}: layer {:.3f} s, GEMMs {:.3f} s ({:.0f} GFLOP/s), "
        "ratio {:.2f} (from {:.2f} to {:.2f})\n",
        s.T, s.E, s.K, s.H, s.F, median(layer_seconds), median(gemm_seconds),
        flops / median(gemm_seconds) / 1e9, median(ratios),
        *std::min_element(ratios.begin(), ratios.end()),
        *std::max_element(ratios.begin(), ratios.end()));
}

}  // namespace
}  // namespace moe

int main(int argc, char** argv) {
    const int repeats = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
    moe::keep_freed_memory();
    moe::cpu::register_reference_cpu();
    moe::measure({2048, 8, 2, 512, 1024}, repeats);
    moe::measure({4096, 64, 8, 1024, 512}, repeats);
}
