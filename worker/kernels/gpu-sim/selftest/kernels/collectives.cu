// Barriers, shuffles, votes: each thread writes what it got.

extern "C" __global__ void __launch_bounds__(32) shuffles(int* out) {
    const int lane = (int)threadIdx.x;
    int* mine = out + lane * 8;
    mine[0] = __shfl_xor_sync(~0u, lane, 5);
    mine[1] = __shfl_down_sync(~0u, lane, 3);
    mine[2] = __shfl_up_sync(~0u, lane, 3);
    mine[3] = __shfl_sync(~0u, lane, 7);
    mine[4] = __shfl_xor_sync(~0u, lane, 9, 8);
    mine[5] = __shfl_down_sync(~0u, lane, 3, 8);
    mine[6] = __shfl_up_sync(~0u, lane, 3, 8);
    mine[7] = __shfl_sync(~0u, lane, 11, 8);
}

extern "C" __global__ void __launch_bounds__(32) half_warps(int* out) {
    const int lane = (int)threadIdx.x;
    out[lane] = lane < 16 ? __shfl_down_sync(0x0000ffffu, lane, 1, 16) : __shfl_up_sync(0xffff0000u, lane, 1, 16);
}

extern "C" __global__ void __launch_bounds__(64) votes(int* out) {
    const int thread = (int)threadIdx.x, lane = thread & 31;
    int* mine = out + thread * 8;
    mine[0] = (int)__ballot_sync(~0u, lane % 3 == 0);
    mine[1] = __any_sync(~0u, thread == 40);
    mine[2] = __all_sync(~0u, thread < 32);
    mine[3] = (int)__match_any_sync(~0u, lane % 4);
    mine[4] = __reduce_add_sync(~0u, lane - 20);
    mine[5] = __reduce_max_sync(~0u, lane - 20);
    mine[6] = (int)__reduce_min_sync(~0u, (u32)lane + 0x80000000u);
    mine[7] = __syncthreads_count(thread % 5 == 0) * 100 + __syncthreads_or(thread == 63) * 10 + __syncthreads_and(thread < 63);
}

// Sums over a grid of 3 dimensions: indices and dimensions are what CUDA says.
extern "C" __global__ void __launch_bounds__(24) indices(u32* out) {
    const u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const u32 thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * 24 + thread] = block * 1000 + thread;
}

extern "C" __global__ void __launch_bounds__(128) counters(u32* out, float* sum) {
    atomicAdd(&out[0], 1);
    atomicMax(&out[1], blockIdx.x * 128 + threadIdx.x);
    atomicMin(&out[2], blockIdx.x * 128 + threadIdx.x);
    atomicInc(&out[3], 99);
    atomicAdd(sum, 0.5f);
    atomicCAS(&out[4], 7, 8);
}

// A sum over the block in shared memory: right only with both barriers.
extern "C" __global__ void __launch_bounds__(256) block_sum(u32* out, u32 rounds) {
    __shared__ u32 parts[256];
    u32 total = 0;
    for (u32 round = 0; round < rounds; round++) {
        parts[threadIdx.x] = threadIdx.x + round;
        __syncthreads();
        total += parts[(threadIdx.x + 77) % 256];
        __syncthreads();
    }
    out[blockIdx.x * 256 + threadIdx.x] = total;
}

// The same without the second barrier.
extern "C" __global__ void __launch_bounds__(256) block_sum_without_second_barrier(u32* out, u32 rounds) {
    __shared__ u32 parts[256];
    u32 total = 0;
    for (u32 round = 0; round < rounds; round++) {
        parts[threadIdx.x] = threadIdx.x + round;
        __syncthreads();
        total += parts[(threadIdx.x + 77) % 256];
    }
    out[blockIdx.x * 256 + threadIdx.x] = total;
}
