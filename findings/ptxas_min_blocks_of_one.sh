#!/usr/bin/env bash
# __launch_bounds__(256, 1) is not __launch_bounds__(256): "at least one block", which every
# kernel that can start fulfils, changes how many registers ptxas takes, in both directions.
#
# One kernel body, sums of an R x C outer product in registers, for sm_90a. CUDA 13.0 (nvcc
# 13.0.88, the wheels of PyPI) and 13.5 agree:
#   R x C    (256)   (256, 1)   (256, 2)
#   8 x 13    236      168        128
#   10 x 10   128      168        128
# Without the second argument ptxas chooses a register target by a rule of its own: below the
# 255 that 256 threads may have, or far above what the same code needs. A larger kernel (a
# product on tensor cores with two outputs) spilled at 128 registers with (256) and took 225,
# without spilling, with (256, 1). So: say how many blocks are meant, also when it is one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
nvcc=$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
"$nvcc" --version | grep release

cat >sums.cu <<'TEXT'
__global__ void __launch_bounds__(BOUNDS) sums(float* out, const float* x, int n) {
    float sum[ROWS][COLUMNS] = {};
    for (int k = 0; k < n; ++k) {
        float a[ROWS], b[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i) a[i] = x[(k * (ROWS + COLUMNS) + i) * 256 + threadIdx.x];
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            b[j] = x[(k * (ROWS + COLUMNS) + ROWS + j) * 256 + threadIdx.x];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) sum[i][j] += a[i] * b[j];
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            out[(i * COLUMNS + j) * 256 + threadIdx.x] = sum[i][j];
}
TEXT
# registers ROWS COLUMNS BOUNDS
registers() {
    sed "s/BOUNDS/$3/" sums.cu >bounded.cu  # nvcc would split -D at a comma
    "$nvcc" -DROWS="$1" -DCOLUMNS="$2" -gencode arch=compute_90a,code=sm_90a \
        -Xptxas -v -c bounded.cu -o sums.o 2>&1 | sed -n 's/.*Used \([0-9]*\) registers.*/\1/p'
}
seen=""
for size in "8 13" "10 10"; do
    for bounds in "256" "256,1" "256,2"; do
        # shellcheck disable=SC2086
        seen+="$size ($bounds): $(registers $size $bounds); "
    done
done
echo "$seen"
[ "$seen" = "8 13 (256): 236; 8 13 (256,1): 168; 8 13 (256,2): 128; \
10 10 (256): 128; 10 10 (256,1): 168; 10 10 (256,2): 128; " ] || {
    echo "changed" >&2
    exit 1
}
