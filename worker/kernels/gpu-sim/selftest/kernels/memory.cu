// Memory: asynchronous copies, dynamic shared memory, and what is read before it is written.

// Copies 128 numbers by cp.async and reads them after `wait`, or before.
extern "C" __global__ void __launch_bounds__(32) async_copy(float* out, const float* in, u32 wait) {
    DYN_SMEM(bytes);
    float* shared = (float*)bytes;
    const u32 lane = threadIdx.x;
    cp_async16(shared + lane * 4, in + lane * 4, lane < 31);
    cp_async_commit();
    if (wait) {
        cp_async_wait<0>();
    } else {
        cp_async_wait<1>();
    }
    __syncthreads();
    for (u32 i = 0; i < 4; i++) {
        out[i * 32 + lane] = shared[i * 32 + lane];
    }
}

extern "C" __global__ void __launch_bounds__(32) unwritten_shared(float* out) {
    __shared__ float fixed[32];
    DYN_SMEM(bytes);
    if (threadIdx.x == 99) {
        fixed[0] = 0.0f;
    }
    out[threadIdx.x] = fixed[threadIdx.x];
    out[32 + threadIdx.x] = ((float*)bytes)[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(256) add_one(float* data, u32 n) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) {
        data[i] += 1.0f;
    }
}

struct Parameters {
    float* data;
    float by;
    u32 n;
};
extern "C" __global__ void __launch_bounds__(64) scale(Parameters p) {
    if (threadIdx.x < p.n) {
        p.data[threadIdx.x] *= p.by;
    }
}

// The last block to come sums what all blocks left: right by way of fence and counter, not of a barrier.
extern "C" __global__ void __launch_bounds__(32) last_block_sums(u32* total, u32* parts, u32* counter) {
    __shared__ u32 is_last;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = blockIdx.x + 1;
        __threadfence();
        is_last = atomicAdd(counter, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 0) {
        u32 sum = 0;
        for (u32 i = 0; i < gridDim.x; i++) {
            sum += parts[i];
        }
        *total = sum;
    }
}
