#!/usr/bin/env bash
# ptxas 13.0, sm_90a: two qualifiers of PTX that sound local become barriers of the whole GPU's
# memory (MEMBAR.ALL.GPU), and a third form of the same instruction does not.
#
#   mbarrier.arrive.release.cluster.shared::cluster   MEMBAR.ALL.GPU before the arrival, though
#                                                      a cluster is a handful of neighbours
#   mbarrier.arrive.shared::cluster (scope .cta)       none: what pipelines of clusters use to
#                                                      give a stage back
#   fence.proxy.async                                  MEMBAR.ALL.GPU, since it is for global
#                                                      memory as well
#   fence.proxy.async.shared::cta                      none
#
# In the main loop of a grouped GEMM both stood in every step. Nothing warns, and the sums are
# right either way: only the SASS shows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvdisasm==13.2.51
bin=$(echo "$folder"/venv/lib/python3*/site-packages/nvidia/cu13/bin)
"$bin/ptxas" --version | grep release

# barriers INSTRUCTION: how many MEMBAR.ALL.GPU stand in its SASS
barriers() {
    cat >one.ptx <<TEXT
.version 9.0
.target sm_90a
.address_size 64
.visible .entry one(.param .u32 address, .param .u32 value) {
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [address];
    ld.param.u32 %r2, [value];
    st.shared.u32 [%r1+64], %r2;
    $1
    ret;
}
TEXT
    "$bin/ptxas" -arch=sm_90a one.ptx -o one.cubin
    "$bin/nvdisasm" -c one.cubin | grep -c 'MEMBAR.ALL.GPU' || true
}
seen="arrive.release.cluster: $(barriers 'mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];')
arrive: $(barriers 'mbarrier.arrive.shared::cluster.b64 _, [%r1];')
fence.proxy.async: $(barriers 'fence.proxy.async;')
fence.proxy.async.shared::cta: $(barriers 'fence.proxy.async.shared::cta;')"
echo "$seen"
[ "$seen" = "arrive.release.cluster: 1
arrive: 0
fence.proxy.async: 1
fence.proxy.async.shared::cta: 0" ] || {
    echo "changed" >&2
    exit 1
}
