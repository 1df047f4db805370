// Races that only the race build can name; the lines that it must name carry a mark.

extern "C" __global__ void __launch_bounds__(64) race_in_block(u32* out) {
    __shared__ u32 table[64];
    table[threadIdx.x] = 0;
    __syncthreads();
    table[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = table[(threadIdx.x + 32) % 64];  // MARK race_in_block
}
extern "C" __global__ void __launch_bounds__(32) race_in_warp(u32* out) {
    __shared__ u32 table[32];
    table[threadIdx.x] = 0;
    __syncwarp();
    table[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = table[(threadIdx.x + 1) % 32];  // MARK race_in_warp
}
extern "C" __global__ void __launch_bounds__(32) no_race_in_warp(u32* out) {
    __shared__ u32 table[32];
    table[threadIdx.x] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = table[(threadIdx.x + 1) % 32];
}
extern "C" __global__ void __launch_bounds__(32) race_between_blocks(u32* out) {
    out[threadIdx.x + blockIdx.x * 16] = blockIdx.x;  // MARK race_between_blocks
}
// Bytes side by side, by as many threads: no race.
extern "C" __global__ void __launch_bounds__(64) bytes_side_by_side(u8* out) {
    out[threadIdx.x] = (u8)threadIdx.x;
}
extern "C" __global__ void __launch_bounds__(32) copy_without_wait(float* out, const float* in) {
    __shared__ __align__(16) float table[32];
    cp_async4(table + threadIdx.x, in + threadIdx.x, true);
    cp_async_commit();
    out[threadIdx.x] = table[threadIdx.x];  // MARK copy_without_wait
    cp_async_wait<0>();
}
extern "C" __global__ void __launch_bounds__(32) reads_unwritten(u32* out, const u32* in) {
    out[threadIdx.x] = in[threadIdx.x];  // MARK reads_unwritten
}
extern "C" __global__ void __launch_bounds__(32) one_past_the_end(u32* out, u32 n) {
    if (threadIdx.x <= n) {
        out[threadIdx.x] = 1;  // MARK one_past_the_end
    }
}
extern "C" __global__ void __launch_bounds__(32) plain_beside_atomic(u32* out) {
    if (blockIdx.x == 0) {
        atomicAdd(out, 1u);
    } else if (threadIdx.x == 0) {
        out[0] = 5;  // MARK plain_beside_atomic
    }
}
