// alignment_test.cu: products whose operands or results begin anywhere: TMA wants
// multiples of 16 bytes, and so do the widest copies of the first rung.

#include "optimized_gpu/grouped_gemm/launch.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

using optimized::Rung;
using Tensors = std::vector<Tensor>;

/// The same values, beginning so many elements later than memory does.
class Shifted {
  public:
    Shifted(const Tensor& tensor, std::int64_t elements)
        : memory_(
              transfer(padded(tensor, elements), {MemorySpace::device, tensor.dtype()})),
          tensor_(Tensor::borrow({static_cast<char*>(memory_.view().bytes) +
                                      elements * std::int64_t(size_of(tensor.dtype())),
                                  tensor.dtype(), tensor.shape(), MemorySpace::device})) {
    }
    const Tensor& operator*() const { return tensor_; }

  private:
    static Tensor padded(const Tensor& tensor, std::int64_t elements) {
        std::vector<float> values = on_host(tensor);
        values.insert(values.begin(), std::size_t(elements), 0.0f);
        return Tensor::from({std::int64_t(values.size())}, values);
    }
    Tensor memory_, tensor_;
};

const GroupedRows kRows = {{3, 0, 14}, 48, 24, 0};

/// Operands of all products, h among them in fp32 as well.
Tensors operands() {
    const std::int64_t F = kRows.out / 2;
    return {Matrix(kRows.rows(), kRows.in, 3).on_device(),
            kRows.device_weight(),
            Matrix(kRows.rows(), kRows.out, 4).on_device(),
            Matrix(3 * kRows.in, F, 5).on_device(DType::bf16, {3, kRows.in, F}),
            Matrix(kRows.rows(), kRows.out, 6).on_device(),
            Matrix(kRows.rows(), kRows.out, 6).on_device(DType::f32)};
}

/// The products of grouped_gemm.h, in `into` where there is something.
Tensors products(const Tensors& of, const Tensors& into) {
    using namespace optimized;
    const Tensor &x = of[0], &weight = of[1], &dy = of[2], &fc2 = of[3];
    const RowGroups groups = kRows.groups();
    const auto at = [&](std::size_t i) { return into.empty() ? Tensor() : into[i]; };
    const UpProjection up = linear_forward_activation(
        x, weight, {}, {}, {}, groups, {}, DType::bf16, nullptr, {at(3), at(4)});
    Tensors all = {
        linear_forward(x, weight, {}, {}, groups, DType::bf16, nullptr, at(0)),
        linear_forward(x, weight, {}, {}, groups, DType::f32, nullptr, at(1)),
        linear_backward_input(dy, weight, groups, nullptr, at(2)),
        up.h,
        up.a,
        linear_backward_weight(dy, {}, x, {}, groups, DType::bf16, nullptr, at(5)),
        linear_backward_weight(dy, {}, x, {}, groups, DType::f32, nullptr, at(6))};
    for (const Tensor& h : {of[4], of[5]}) {
        ActivationGradients results;
        if (!into.empty()) results = {at(7), at(8), at(9), {}};
        const ActivationGradients back =
            linear_backward_activation(x, fc2, h, {}, {}, groups, {}, nullptr, results);
        for (const Tensor& t : {back.dh, back.a, back.dp})
            all.push_back(into.empty() ? t : t.clone());
    }
    all.push_back(linear_backward_bias(dy, {}, {}, groups, DType::f32));
    return all;
}

std::vector<std::vector<float>> values_of(const Tensors& tensors) {
    std::vector<std::vector<float>> all;
    for (const Tensor& tensor : tensors) all.push_back(on_host(tensor));
    return all;
}

/// What each product should be, on the first rung and with everything aligned.
std::vector<std::vector<float>> on_first_rung(const Tensors& of) {
    const RungGuard first(Rung::mma_sync);
    return values_of(products(of, {}));
}

/// Sums are exact, but for those of dp.
void expect_near(const std::vector<std::vector<float>>& got,
                 const std::vector<std::vector<float>>& want) {
    for (std::size_t k = 0; k < want.size(); ++k)
        for (std::size_t e = 0; e < want[k].size(); ++e)
            ASSERT_NEAR(got[k][e], want[k][e], 1e-5 * std::abs(want[k][e]) + 1e-5)
                << "product " << k << ", element " << e;
}

TEST(OptimizedAlignment, OperandsMayBeginAnywhere) {
    gpu::register_device_memory();
    const Tensors aligned = operands();
    const auto want = on_first_rung(aligned);
    for (std::size_t i = 0; i < aligned.size(); ++i)
        for (const int elements : {1, 2}) {
            SCOPED_TRACE(fmt::format("operand {}, {} elements on", i, elements));
            const Shifted shifted(aligned[i], elements);
            Tensors some = aligned;
            some[i] = *shifted;
            expect_near(values_of(products(some, {})), want);
        }
}

TEST(OptimizedAlignment, ResultsMayBeginAnywhere) {
    gpu::register_device_memory();
    const Tensors of = operands(), plain = products(of, {});
    const auto want = on_first_rung(of);
    for (std::size_t i = 0; i < 10; ++i) {
        SCOPED_TRACE(fmt::format("result {}", i));
        const Shifted shifted(Tensor::zeros(plain[i].shape(), plain[i].dtype()), 1);
        Tensors into = plain;
        into[i] = *shifted;
        expect_near(values_of(products(of, into)), want);
    }
}

TEST(OptimizedAlignment, ABeginningCountsAsAWidth) {
    const auto* const aligned = reinterpret_cast<const char*>(1024);
    const auto rung = [](const void* data) {
        return optimized::chosen_rung({64, optimized::begin_of(data)});
    };
    EXPECT_EQ(rung(aligned + 2), Rung::mma_sync);
    EXPECT_EQ(rung(aligned + 8), Rung::mma_sync);
    for (const void* data :
         {static_cast<const void*>(aligned + 16), static_cast<const void*>(nullptr)})
        EXPECT_EQ(rung(data), optimized::chosen_rung({64}));
}

}  // namespace
}  // namespace moe::test
