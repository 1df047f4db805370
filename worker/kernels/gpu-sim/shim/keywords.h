// The words that CUDA adds to C++, and the built-in variables.
#pragma once
#include "device.h"

#ifdef EMU_MARK_ENTRIES  // build.sh looks for kernels in the preprocessor's output
#define __global__ EMU_KERNEL
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static const
// One copy for each OS thread, that is for each block that runs; the runtime fills all of them with NaN before a block.
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)  // enforced at launch, from the compiled image
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition)

#define threadIdx (emu::current->index)
#define blockIdx (emu::view->index)
#define blockDim (emu::view->block_dim)
#define gridDim (emu::view->grid_dim)
#define warpSize 32

#define DYN_SMEM(name) unsigned char* const name = emu::view->dynamic_shared

// The last parameter of everything that can fail or wait.
#define EMU_SITE ::emu::Site site = ::emu::Site::here()

#define EMU_INLINE static inline __attribute__((always_inline, unused))
