// moe_c.cpp: the functions of bench/moe_c.h. Exceptions end here.

#include "bench/moe_c.h"

#include <cuda_runtime.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include "bench/moe_c_arrays.h"
#include "bench/moe_c_setup.h"
#include "bench/routed_experts.h"
#include "cli/commands.h"
#include "core/buffer_pool.h"
#include "core/error.h"
#include "core/last_backward.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "gpu/counters.h"
#include "gpu/stream.h"

using moe::MoELayer;
using moe::Tensor;
using moe::TensorMap;
using moe::bench::RoutedExperts;

struct moe_layer {
    moe::MoEConfig config;
    moe::ModuleSpec spec;
    bool on_device = false;  // a component works there
    TensorMap parameters;
    // Made at the first forward that wants them; a forward's backward shares them.
    std::shared_ptr<MoELayer> whole;
    std::shared_ptr<RoutedExperts> routed;
    // What the calls before gave back.
    std::shared_ptr<moe::BufferPool> pool = std::make_shared<moe::BufferPool>();
};

struct moe_saved {
    bool on_device = false;
    bool is_let_go = false;
    moe::RunContext context;
    std::shared_ptr<moe::BufferPool> pool;
    // One of the two pairs
    std::shared_ptr<MoELayer> whole;
    MoELayer::SavedForward whole_forward;
    std::shared_ptr<RoutedExperts> routed;
    RoutedExperts::Forward routed_forward;

    Tensor output;  // in the shape of the caller's hidden states
    TensorMap gradients;
};

namespace moe::bench {
namespace {

// An array, because telling of an error must not allocate.
thread_local char last_error[1024];

int fail(int code, const char* message) noexcept {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    for (char* c = last_error; *c != '\0'; ++c)
        if (static_cast<unsigned char>(*c) < ' ' || *c == 0x7f) *c = '?';
    return code;
}

/// Tiers are registered at the first call, unless the program has done it.
void start() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (tiers().empty()) register_all_tiers();
    });
}

/// Runs the body of a C function.
template <typename Action>
int run(const Action& action) noexcept {
    last_error[0] = '\0';
    try {
        start();
        action();
        return MOE_OK;
    } catch (const InputError& error) {
        return fail(MOE_BAD_INPUT, error.what());
    } catch (const std::bad_alloc&) {
        return fail(MOE_BAD_INPUT, "memory = exhausted: use smaller sizes");
    } catch (const std::exception& error) {
        char text[sizeof last_error];
        std::snprintf(text, sizeof text, "internal error, please report: %s",
                      error.what());
        return fail(MOE_INTERNAL_ERROR, text);
    } catch (...) {
        return fail(MOE_INTERNAL_ERROR, "internal error, please report: unknown");
    }
}

template <typename Pointer>
void require(const char* field, const Pointer* pointer) {
    if (pointer == nullptr) reject(field, "null", "must not be null");
}

void check_floating(const std::string& field, const Tensor& tensor, const Shape& shape) {
    if (!is_floating(tensor.dtype()) || tensor.shape() != shape)
        reject(field, to_string(tensor.dtype()) + " " + to_string(tensor.shape()),
               "must be floating-point " + to_string(shape));
}

void check_experts_parameters(const moe_layer& layer) {
    for (const auto& [name, shape] : parameter_shapes(layer.config))
        if (name.starts_with("experts.") && !layer.parameters.contains(name))
            reject(name, "absent", "required, with shape " + to_string(shape));
}

/// The default stream's work between two points of the caller's stream.
class InStream {
  public:
    InStream(bool on_device, void* stream)
        : ordered_(on_device && stream != nullptr),
          stream_(static_cast<cudaStream_t>(stream)) {
        if (ordered_) gpu::wait_for(nullptr, stream_);
    }
    /// What the stream gets from now on waits for the work.
    void done() const {
        if (ordered_) gpu::wait_for(stream_, nullptr);
    }

  private:
    bool ordered_;
    cudaStream_t stream_;
};

void run_backward(moe_saved* saved, const moe_array* grad_output, void* stream,
                  bool is_last) {
    require("saved", saved);
    if (saved->is_let_go)
        reject("saved", "used", "moe_last_backward() let go of what the forward kept");
    const Tensor doutput = borrow_array("grad_output", grad_output);
    check_floating("grad_output", doutput, saved->output.shape());
    const InStream order(saved->on_device, stream);
    const BufferPool::Scope scope(*saved->pool);
    std::optional<LastBackward> last;
    if (is_last) last.emplace();
    saved->is_let_go = is_last;
    TensorMap gradients;
    if (saved->whole != nullptr) {
        auto made = saved->whole->backward(doutput.reshaped(saved->whole_forward.shape),
                                           saved->whole_forward, saved->context);
        gradients = std::move(made.parameters);
        gradients["hidden_states"] = made.hidden_states.reshaped(saved->output.shape());
    } else {
        gradients =
            saved->routed->backward(doutput, saved->routed_forward, saved->context);
    }
    order.done();
    saved->gradients = std::move(gradients);
}

}  // namespace
}  // namespace moe::bench

using namespace moe;
using namespace moe::bench;

int32_t moe_interface_version(void) {
    return MOE_INTERFACE_VERSION;
}

const char* moe_last_error(void) {
    return last_error;
}

int32_t moe_suppliers(const char** json) {
    return run([&] {
        require("json", json);
        static const std::string text = describe_suppliers();
        *json = text.c_str();
    });
}

int32_t moe_create(const char* config, const char* spec, moe_layer** layer) {
    return run([&] {
        require("config", config);
        require("spec", spec);
        require("layer", layer);
        auto created = std::make_unique<moe_layer>();
        created->config = parse_config(config);
        created->spec = parse_spec(spec);
        created->on_device = created->spec.uses_device();
        *layer = created.release();
    });
}

int32_t moe_destroy(moe_layer* layer) {
    return run([&] { delete layer; });
}

int32_t moe_set_parameter(moe_layer* layer, const char* name, const moe_array* value) {
    return run([&] {
        require("layer", layer);
        require("name", name);
        const auto shapes = parameter_shapes(layer->config);
        const auto found = shapes.find(name);
        if (found == shapes.end()) {
            std::vector<std::string> names;
            for (const auto& [known, _] : shapes) names.push_back(known);
            reject("parameter", name,
                   fmt::format("this layer has {}", fmt::join(names, ", ")));
        }
        const Tensor parameter = borrow_array(name, value);
        check_floating(name, parameter, found->second);
        layer->parameters[name] = parameter;
        layer->whole.reset();
        layer->routed.reset();
    });
}

int32_t moe_forward(moe_layer* layer, const moe_array* hidden, int32_t training,
                    void* stream, moe_saved** saved, moe_array* output) {
    return run([&] {
        require("layer", layer);
        require("saved", saved);
        require("output", output);
        const Tensor given = borrow_array("hidden_states", hidden);
        const Shape shape = given.shape();
        if (shape.size() != 2 && shape.size() != 3)
            reject("hidden_states", to_string(shape), "must be (S, B, H) or (T, H)");
        const Tensor input =
            shape.size() == 3 ? given : given.reshaped({shape[0], 1, shape[1]});

        const InStream order(layer->on_device, stream);
        if (layer->whole == nullptr)
            layer->whole =
                std::make_shared<MoELayer>(layer->config, layer->spec, layer->parameters);
        auto made = std::make_unique<moe_saved>();
        made->on_device = layer->on_device;
        made->pool = layer->pool;
        const BufferPool::Scope scope(*made->pool);
        made->context.training = training != 0;
        made->whole = layer->whole;
        auto forward = made->whole->forward(input, {}, made->context);
        made->whole_forward = std::move(forward.saved);
        made->output = forward.output.reshaped(shape);
        forward.losses.read();  // refuses logits that are not finite
        order.done();
        *output = array_of(made->output);
        *saved = made.release();
    });
}

int32_t moe_experts_forward(moe_layer* layer, const moe_array* hidden,
                            const moe_array* probs, const moe_array* routing_map,
                            void* stream, moe_saved** saved, moe_array* output) {
    return run([&] {
        require("layer", layer);
        require("saved", saved);
        require("output", output);
        const Tensor input = borrow_array("hidden_states", hidden);
        const std::int64_t T = input.shape().empty() ? 0 : input.dim(0);
        const Shape routing = {T, layer->config.num_experts()};
        check_floating("hidden_states", input, {T, layer->config.latent_size()});
        const Tensor weights = borrow_array("probs", probs);
        check_floating("probs", weights, routing);
        const Tensor map = borrow_array("routing_map", routing_map);
        if (map.dtype() != DType::u8 || map.shape() != routing)
            reject("routing_map", to_string(map.dtype()) + " " + to_string(map.shape()),
                   "must be uint8 " + to_string(routing));
        check_experts_parameters(*layer);

        const InStream order(layer->on_device, stream);
        if (layer->routed == nullptr)
            layer->routed = std::make_shared<RoutedExperts>(layer->config, layer->spec,
                                                            layer->parameters);
        auto made = std::make_unique<moe_saved>();
        made->on_device = layer->on_device;
        made->pool = layer->pool;
        const BufferPool::Scope scope(*made->pool);
        made->routed = layer->routed;
        made->routed_forward = made->routed->forward(input, weights, map, made->context);
        made->output = made->routed_forward.output;
        order.done();
        *output = array_of(made->output);
        *saved = made.release();
    });
}

int32_t moe_backward(moe_saved* saved, const moe_array* grad_output, void* stream) {
    return run([&] { run_backward(saved, grad_output, stream, false); });
}

int32_t moe_last_backward(moe_saved* saved, const moe_array* grad_output, void* stream) {
    return run([&] { run_backward(saved, grad_output, stream, true); });
}

int32_t moe_gradient(const moe_saved* saved, const char* name, moe_array* gradient) {
    return run([&] {
        require("saved", saved);
        require("name", name);
        require("gradient", gradient);
        if (saved->gradients.empty())
            reject("gradient", name, "there is none before moe_backward()");
        const auto found = saved->gradients.find(name);
        if (found == saved->gradients.end()) {
            std::vector<std::string> names;
            for (const auto& [known, _] : saved->gradients) names.push_back(known);
            reject("gradient", name, fmt::format("known are {}", fmt::join(names, ", ")));
        }
        *gradient = array_of(found->second);
    });
}

int32_t moe_release(moe_saved* saved) {
    return run([&] { delete saved; });
}

int32_t moe_count(int32_t reset_peak, moe_counters* counters) {
    return run([&] {
        require("counters", counters);
        const gpu::Counters now = gpu::counters();
        *counters = {now.launches,   now.host_waits, now.bytes,
                     now.peak_bytes, tensor_bytes(), peak_tensor_bytes()};
        if (reset_peak == 0) return;
        gpu::reset_peak();
        reset_peak_tensor_bytes();
    });
}
