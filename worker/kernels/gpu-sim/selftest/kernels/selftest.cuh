#define DEV_RECURSIVE static __device__ __noinline__
