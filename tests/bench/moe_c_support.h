/// @file
/// The C interface's layers and forwards as objects, for its suites.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "bench/moe_c.h"
#include "bench/moe_c_arrays.h"
#include "tests/support.h"

namespace moe::test {

using bench::array_of;

inline std::string json_of(MoEConfig config) {
    return config_to_json(config).dump();
}

/// A layer of the C interface, and its forwards; a failed call fails the test.
class CLayer {
  public:
    CLayer(const MoEConfig& config, const ComponentSpec& supplier) {
        check(moe_create(json_of(config).c_str(), to_string(supplier).c_str(), &layer_));
    }
    ~CLayer() { check(moe_destroy(layer_)); }
    CLayer(const CLayer&) = delete;
    CLayer& operator=(const CLayer&) = delete;

    void set(const TensorMap& parameters) {
        for (const auto& [name, tensor] : parameters) {
            const moe_array array = array_of(tensor);
            check(moe_set_parameter(layer_, name.c_str(), &array));
        }
    }
    moe_layer* get() const { return layer_; }

    static void check(std::int32_t code) { ASSERT_EQ(code, MOE_OK) << moe_last_error(); }

  private:
    moe_layer* layer_ = nullptr;
};

/// One forward of a CLayer and what it left, as tensors that borrow it.
class CForward {
  public:
    CForward(const CLayer& layer, const Tensor& hidden, void* stream = nullptr) {
        const moe_array input = array_of(hidden);
        CLayer::check(moe_forward(layer.get(), &input, 1, stream, &saved_, &output_));
    }
    CForward(const CLayer& layer, const Tensor& hidden, const Tensor& probs,
             const Tensor& map) {
        const moe_array arrays[] = {array_of(hidden), array_of(probs), array_of(map)};
        CLayer::check(moe_experts_forward(layer.get(), &arrays[0], &arrays[1], &arrays[2],
                                          nullptr, &saved_, &output_));
    }
    ~CForward() { CLayer::check(moe_release(saved_)); }
    CForward(const CForward&) = delete;
    CForward& operator=(const CForward&) = delete;

    Tensor output() const { return bench::borrow_array("output", &output_); }
    void backward(const Tensor& doutput, void* stream = nullptr) {
        const moe_array array = array_of(doutput);
        CLayer::check(moe_backward(saved_, &array, stream));
    }
    Tensor gradient(const std::string& name) const {
        moe_array array = {};
        CLayer::check(moe_gradient(saved_, name.c_str(), &array));
        return bench::borrow_array(name, &array);
    }
    moe_saved* get() const { return saved_; }

  private:
    moe_saved* saved_ = nullptr;
    moe_array output_ = {};
};

}  // namespace moe::test
