/// @file
/// The make_… functions; here they come with the types.
#pragma once

#include "vector_types.h"
