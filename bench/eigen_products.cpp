#include "bench/eigen_products.h"

#include "reference_cpu/eigen.h"

namespace moe::bench {

struct EigenProducts::Expert {
    using Matrix = cpu::Matrix<float>;
    Expert(std::int64_t rows, std::int64_t H, std::int64_t F, std::int64_t Z)
        : x(Matrix::Random(rows, H)),
          h(Matrix::Random(rows, Z)),
          a(Matrix::Random(rows, F)),
          w1(Matrix::Random(Z, H)),
          w2(Matrix::Random(H, F)) {}
    Matrix x, h, a, w1, w2;
};

EigenProducts::EigenProducts(const MoEConfig& config,
                             const std::vector<std::int64_t>& rows) {
    for (std::int64_t count : rows)
        experts_.emplace_back(count, config.latent_size(), config.ffn(),
                              config.fc1_rows(config.ffn()));
}

EigenProducts::~EigenProducts() = default;

void EigenProducts::forward() {
    const auto count = std::int64_t(experts_.size());
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t e = 0; e < count; ++e) {
        const Expert& expert = experts_[std::size_t(e)];
        cpu::Matrix<float> h(expert.h.rows(), expert.h.cols());
        h.noalias() = expert.x * expert.w1.transpose();
        cpu::Matrix<float> y(expert.x.rows(), expert.x.cols());
        y.noalias() = expert.a * expert.w2.transpose();
    }
}

void EigenProducts::backward() {
    const auto count = std::int64_t(experts_.size());
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t e = 0; e < count; ++e) {
        const Expert& expert = experts_[std::size_t(e)];
        cpu::Matrix<float> da(expert.a.rows(), expert.a.cols());
        da.noalias() = expert.x * expert.w2;  // dy has the shape of x
        cpu::Matrix<float> dw2(expert.w2.rows(), expert.w2.cols());
        dw2.noalias() = expert.x.transpose() * expert.a;
        cpu::Matrix<float> dx(expert.x.rows(), expert.x.cols());
        dx.noalias() = expert.h * expert.w1;
        cpu::Matrix<float> dw1(expert.w1.rows(), expert.w1.cols());
        dw1.noalias() = expert.h.transpose() * expert.x;
    }
}

}  // namespace moe::bench
