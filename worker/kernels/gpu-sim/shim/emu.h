// What a kernel source is compiled against on the host: it stands before prim.cuh, which then leaves its device part
// out, and makes CUDA C++ of g++'s C++.
#pragma once
#define CUDA_EMU 1

#include <limits>

#include "keywords.h"
#include "vectors.h"

#include "arithmetic.h"
#include "atomics.h"
#include "collectives.h"
#include "entries.h"
#include "prim.h"
