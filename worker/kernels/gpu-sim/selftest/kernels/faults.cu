// Each kernel is wrong in one way. Lines that must be named carry the mark that the test looks for.

extern "C" __global__ void __launch_bounds__(64) divergent_barrier(int* out) {
    if (threadIdx.x < 16) {
        __syncthreads();  // MARK divergent_barrier
    }
    out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}
extern "C" __global__ void __launch_bounds__(64) two_barriers(int* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();  // MARK two_barriers
    }
    out[threadIdx.x] = 2;
}
extern "C" __global__ void __launch_bounds__(64) half_warp_mma(float* out) {
    float d[4] = {};
    const u32 a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) {
        mma_bf16_16816(d, a, b);  // MARK half_warp_mma
    }
    out[threadIdx.x] = d[0];
}
extern "C" __global__ void __launch_bounds__(64) wrong_mask(int* out) {
    out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1, 1);  // MARK wrong_mask
}
extern "C" __global__ void __launch_bounds__(64) misaligned(u32* out) {
    const uint4* p = (const uint4*)(out + 1);
    out[threadIdx.x] = p->x;  // MARK misaligned
}
extern "C" __global__ void __launch_bounds__(64) past_the_end(u32* out) {
    out[1024 + threadIdx.x] = 1;  // MARK past_the_end
}
extern "C" __global__ void __launch_bounds__(64) writes_to(u32* out) {
    out[threadIdx.x] = 1;  // MARK writes_to
}
extern "C" __global__ void __launch_bounds__(64) past_dynamic_shared(u32* out) {
    DYN_SMEM(bytes);
    ((u32*)bytes)[threadIdx.x + 8192] = 1;  // MARK past_dynamic_shared
    out[threadIdx.x] = 1;
}
extern "C" __global__ void __launch_bounds__(64) past_static_shared(u32* out, u32 index) {
    __shared__ u32 table[32];
    table[threadIdx.x % 32] = 0;
    out[threadIdx.x] = table[index];  // MARK past_static_shared
}
extern "C" __global__ void __launch_bounds__(64) ldmatrix_of_global(u32* out) {
    u32 r[4];
    ldmatrix_x4(r, out);  // MARK ldmatrix_of_global
    out[threadIdx.x] = r[0];
}
extern "C" __global__ void __launch_bounds__(64) copy_from_nowhere(u32* out) {
    __shared__ __align__(16) u32 table[64];
    cp_async4(table + threadIdx.x, out + 4096, true);  // MARK copy_from_nowhere
    cp_async_commit();
    cp_async_wait<0>();
    out[threadIdx.x] = table[threadIdx.x];
}
// Only recursion fills a stack: nothing that a kernel should do.
DEV_RECURSIVE u32 deep(volatile u32* p, u32 n) {
    volatile u32 local[64];
    local[n % 64] = p[0];
    return n == 0 ? local[0] : deep(local, n - 1) + local[n % 64];
}
extern "C" __global__ void __launch_bounds__(64) endless_stack(u32* out) {
    out[threadIdx.x] = deep(out, 100000);
}
// Every thread but the last waits for the kernel ahead.
extern "C" __global__ void __launch_bounds__(64) waits_for_all_but(u32* out, u32 thread) {
    if (threadIdx.x != thread) {
        grid_wait();
    }
    out[threadIdx.x] = 1;
}
