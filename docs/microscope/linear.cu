// linear.cu: y = x Wᵀ four times. Each kernel moves the same numbers and does the same
// sums as the one before it; only the order in which lanes touch memory changes.

#include "docs/microscope/linear.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::microscope {
namespace {

constexpr int kWarp = 32;

// TUTORIAL: the lanes of a warp are neighbours in `column`, so at each j they read one
// element of 32 different rows of W: 32 sectors of 32 bytes, of which 4 bytes are used.
/// One thread per element of y.
__global__ void uncoalesced_kernel(float* y, const float* x, const float* weight,
                                   int rows, int out, int in) {
    const int column = int(blockIdx.x * blockDim.x + threadIdx.x);
    const int row = int(blockIdx.y * blockDim.y + threadIdx.y);
    if (row >= rows || column >= out) return;
    float total = 0.0f;
    for (int j = 0; j < in; ++j) {
        const float a = x[row * in + j];
        const float b = weight[column * in + j];
        total += a * b;
    }
    y[row * out + column] = total;
}

// TUTORIAL: now the lanes are neighbours in j. A warp's 32 loads of 4 bytes are 128 bytes
// in a row: 4 sectors, each used to the last byte. The price is that no lane has the
// whole sum; the lanes add theirs up at the end.
/// One warp per element of y.
__global__ void coalesced_kernel(float* y, const float* x, const float* weight, int rows,
                                 int out, int in) {
    const int lane = int(threadIdx.x);
    const int column = int(blockIdx.x * blockDim.y + threadIdx.y);
    const int row = int(blockIdx.y);
    if (row >= rows || column >= out) return;
    float total = 0.0f;
    for (int j = lane; j < in; j += kWarp) {
        const float a = x[row * in + j];
        const float b = weight[column * in + j];
        total += a * b;
    }
    for (int apart = kWarp / 2; apart > 0; apart /= 2)
        total += __shfl_xor_sync(0xffffffffu, total, apart);
    if (lane == 0) y[row * out + column] = total;
}

constexpr int kTile = 32;

/// kTile rows of x and of W, kTile elements of each.
/// @tparam Width  elements from one row to the next
template <int Width>
struct Tiles {
    float x[kTile][Width], weight[kTile][Width];
};

// TUTORIAL: both kernels above fetch every row of x once per column of y, and every row
// of W once per row of y. Here 32 x 32 threads fetch two tiles together, and each element
// serves 32 of them. Reading W's tile down a column is where the banks come in: with 32
// elements to a row all of a column lies in one bank, with 33 it lies in 32.
/// One block per tile of y.
template <int Width>
__global__ void tiled_kernel(float* y, const float* x, const float* weight, int rows,
                             int out, int in) {
    auto& tiles = gpu::shared_memory<Tiles<Width>>();
    const int lane = int(threadIdx.x), line = int(threadIdx.y);
    const int first_row = int(blockIdx.y) * kTile;
    const int first_column = int(blockIdx.x) * kTile;
    const int x_row = first_row + line, w_row = first_column + line;
    float total = 0.0f;
    for (int first = 0; first < in; first += kTile) {
        const int j = first + lane;
        float a = 0.0f, b = 0.0f;  // beyond the edges
        if (x_row < rows && j < in) a = x[x_row * in + j];
        if (w_row < out && j < in) b = weight[w_row * in + j];
        tiles.x[line][lane] = a;
        tiles.weight[line][lane] = b;
        __syncthreads();
        for (int k = 0; k < kTile; ++k) {
            const float xk = tiles.x[line][k];
            const float wk = tiles.weight[lane][k];
            total += xk * wk;
        }
        __syncthreads();
    }
    if (x_row < rows && first_column + lane < out)
        y[x_row * out + first_column + lane] = total;
}

using Kernel = void (*)(float*, const float*, const float*, int, int, int);

int blocks(std::int64_t length, int each) {
    return int((length + each - 1) / each);
}

/// Starts one of the kernels above.
Tensor run(const char* name, Kernel kernel, dim3 grid, dim3 block, std::size_t smem,
           const Tensor& x, const Tensor& weight) {
    Tensor y = gpu::device_empty<float>({x.dim(0), weight.dim(0)});
    gpu::launch(name, kernel, {grid, block, smem}, gpu::device_data<float>(y),
                gpu::device_data<float>(x), gpu::device_data<float>(weight),
                int(x.dim(0)), int(weight.dim(0)), int(x.dim(1)));
    return y;
}

}  // namespace

const char* to_string(Version version) {
    switch (version) {
        case Version::uncoalesced: return "uncoalesced";
        case Version::coalesced: return "coalesced";
        case Version::conflicting: return "conflicting";
        case Version::padded: return "padded";
        case Version::pipelined: return "pipelined";
    }
    return "";
}

DType operand_dtype(Version version) {
    return version == Version::pipelined ? DType::bf16 : DType::f32;
}

Tensor linear(Version version, const Tensor& x, const Tensor& weight) {
    constexpr int kWarps = 8;
    const int rows = int(x.dim(0)), columns = int(weight.dim(0));
    const dim3 tiles(blocks(columns, kTile), blocks(rows, kTile));
    switch (version) {
        case Version::uncoalesced:
            return run("uncoalesced_kernel", uncoalesced_kernel,
                       dim3(blocks(columns, kWarp), blocks(rows, kWarps)),
                       dim3(kWarp, kWarps), 0, x, weight);
        case Version::coalesced:
            return run("coalesced_kernel", coalesced_kernel,
                       dim3(blocks(columns, kWarps), rows), dim3(kWarp, kWarps), 0, x,
                       weight);
        case Version::conflicting:
            return run("conflicting_kernel", tiled_kernel<kTile>, tiles,
                       dim3(kTile, kTile), sizeof(Tiles<kTile>), x, weight);
        case Version::padded:
            return run("padded_kernel", tiled_kernel<kTile + 1>, tiles,
                       dim3(kTile, kTile), sizeof(Tiles<kTile + 1>), x, weight);
        case Version::pipelined: break;
    }
    return linear_pipelined(x, weight);
}

}  // namespace moe::microscope
