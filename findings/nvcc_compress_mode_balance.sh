#!/usr/bin/env bash
# Of nvcc's modes of compression only `size` touches machine code: with `speed`, `balance` and
# the default, cubins lie in the object as they do with `none`; PTX is packed by all of them.
#
# Two unrolled chains of multiply-adds, CUDA 13.0 (nvcc 13.0.88, the wheels of PyPI), bytes of
# .nv_fatbin:
#                 none    speed  balance  default    size
#   code=sm_90    66328   66328    66328    66328    4312
#   code=compute_90
#                151696   40648     6312     6312    5960
# The documentation names speed, balance and size as a trade between decompression time and
# size, and balance as today's default; who ships kernels for several architectures and takes
# the default ships them unpacked. In one program, tiles of matrix products for two
# architectures took 1,128,608 bytes in every mode but `size`, and 137,072 there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
nvcc=$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
"$nvcc" --version | grep release

cat >chain.cu <<'TEXT'
template <int N>
__global__ void chain(float* x) {
    float v = x[threadIdx.x];
#pragma unroll
    for (int i = 0; i < N; ++i) v = v * 1.0001f + x[i];
    x[threadIdx.x] = v;
}
template __global__ void chain<900>(float*);
template __global__ void chain<1000>(float*);
TEXT
# bytes CODE MODE: of the fat binary
bytes() {
    "$nvcc" -gencode "arch=compute_90,code=$1" "--compress-mode=$2" -c chain.cu -o chain.o
    size -A chain.o | awk '/nv_fatbin/ { print $2 }'
}
seen=()
for code in sm_90 compute_90; do
    for mode in none speed balance default size; do
        seen[${#seen[@]}]=$(bytes "$code" "$mode")
    done
    echo "$code: none, speed, balance, default, size: ${seen[*]: -5}"
done
machine_code=("${seen[@]:0:5}") ptx=("${seen[@]:5:5}")
[ "${machine_code[0]}" = "${machine_code[1]}" ] &&
    [ "${machine_code[0]}" = "${machine_code[2]}" ] &&
    [ "${machine_code[0]}" = "${machine_code[3]}" ] &&
    [ $((machine_code[4] * 2)) -lt "${machine_code[0]}" ] &&
    [ "${ptx[2]}" -lt "${ptx[0]}" ] || {
    echo "changed" >&2
    exit 1
}
