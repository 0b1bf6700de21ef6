// step.cpp: micro-batch by micro-batch, every value printed.

#include "cli/trace/step.h"

#include <fmt/format.h>

#include <memory>

#include "cli/compare/given.h"
#include "cli/trace/values.h"
#include "core/micro_batches.h"

namespace moe {
namespace {

/// Prints each value as it comes, under its step.
class Printer : public Observer {
  public:
    Printer(std::int64_t tokens, const MoEConfig& config) : names_(tokens, config) {}

    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (step != last_) print_step(step);
        last_ = step;
        names_.learn(name, view);
        print_tensor(name, view, names_.names_of(step, name, view));
    }

  private:
    std::optional<Step> last_;
    RowNames names_;
};

void print_losses(const char* title, const Losses& losses) {
    if (!losses.empty()) fmt::print("{}\n", title);
    for (const auto& [name, loss] : losses) fmt::print("  {:<28} {:10.4f}\n", name, loss);
}

void print_gradients(std::optional<std::int64_t> token, const TensorMap& gradients) {
    for (const auto& [name, gradient] : gradients)
        if (token)
            print_summary("grad." + name, gradient);
        else
            print_tensor("grad." + name, gradient);
}

void print_updated(const UpdatedBuffers& updated) {
    const auto& [bias, beta] = updated;
    if (bias.defined() || beta.defined()) fmt::print("\nAfter the step\n");
    if (bias.defined()) print_tensor("expert_bias_updated", bias);
    if (beta.defined()) print_tensor("qb_beta_updated", beta);
}

void print_micro_batch(std::size_t micro_batch, const TraceInput& input,
                       std::optional<std::int64_t> token) {
    fmt::print("\nMicro-batch {}{}\n", micro_batch,
               input.text && token ? ": " + text_around(*input.text, *token) : "");
}

/// Forward and backward of one of so many; adds to what they have in common.
void trace_micro_batch(MoELayer& layer, const TraceInput& input,
                       std::optional<std::int64_t> token, RunContext context,
                       std::int64_t micro_batches, Losses& means, TensorMap& main_grads) {
    const std::int64_t T = input.tokens();
    const auto print_tokens = [&](const char* name, const Tensor& tensor) {
        if (token)
            print_rows(name, tensor, name_tokens(T), {*token});
        else
            print_tensor(name, tensor, name_tokens(T));
    };
    fmt::print("\nInput\n");
    print_tokens("hidden_states", input.hidden);
    if (input.token_ids.defined())
        print_tokens("token_ids", input.token_ids.reshaped({T, 1}));
    context.token_ids =
        by_sequence(input.token_ids, input.seq_len(), input.micro_batch());

    std::unique_ptr<Observer> printer;
    if (token)
        printer = std::make_unique<TokenPrinter>(T, *token, layer.config());
    else
        printer = std::make_unique<Printer>(T, layer.config());
    context.observer = printer.get();
    auto forward = layer.forward(input.hidden, {}, context);
    const Losses losses = forward.losses.read();
    print_losses("\nLosses, before their coefficients", losses);
    add_to_means(means, losses, micro_batches);

    fmt::print("\nGradient of the output\n");
    print_tokens("grad_output", input.doutput);
    const auto gradients = layer.backward(input.doutput, forward.saved, context);
    fmt::print("\nGradients\n");
    print_tokens("grad.hidden_states", gradients.hidden_states);
    print_gradients(token, gradients.parameters);
    if (micro_batches > 1) add_to_main_grads(main_grads, gradients.parameters);
}

}  // namespace

void trace_step(MoELayer& layer, const std::vector<TraceInput>& inputs, bool training,
                std::optional<std::int64_t> token) {
    const auto count = std::int64_t(inputs.size());
    const RunContext context{
        .training = training,
        .main_loss_backward_scale = main_loss_backward_scale(layer.config(), count)};
    Losses means;
    TensorMap main_grads;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (count > 1) print_micro_batch(i, inputs[i], token);
        trace_micro_batch(layer, inputs[i], token, context, count, means, main_grads);
    }
    if (count > 1) {
        fmt::print("\nAll {} micro-batches together\n", count);
        print_losses("\nMeans of the losses, before their coefficients", means);
        fmt::print("\nSums of the gradients (main_grad)\n");
        print_gradients(token, main_grads);
    }
    if (training) print_updated(finish_optimizer_step(layer));
}

}  // namespace moe
