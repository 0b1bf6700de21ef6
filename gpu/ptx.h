/// @file
/// PTX, one function per instruction, for what CUDA C++ has no name for. Under nvcc each
/// is one statement of inline assembly, on a CPU a call into the executor; kernels hold
/// neither.
#pragma once

#include "gpu/ptx/cluster.h"
#include "gpu/ptx/copy.h"
#include "gpu/ptx/matrix.h"
#include "gpu/ptx/mbarrier.h"
#include "gpu/ptx/memory_order.h"
#include "gpu/ptx/synchronization.h"
#include "gpu/ptx/tma.h"
#include "gpu/ptx/wgmma.h"
