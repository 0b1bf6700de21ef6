/// @file
/// CUDA's arithmetic functions that C++ does not have.
#pragma once

#include <math.h>  // not <cmath>: brings exp(float), isnan(float), … to the global names

#include "cuda_on_cpu/float_functions.h"
#include "cuda_on_cpu/integer_functions.h"
#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/load_store.h"
#include "cuda_on_cpu/rounded_functions.h"
