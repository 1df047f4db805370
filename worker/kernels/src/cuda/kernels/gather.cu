// The rows whose logits are wanted, packed together.
//
// Bound by latency: a step wants few rows of a few KiB. One block of 256 threads per row, 16 bytes per thread and request.
//
// out[i] = x[logit_rows[i]] for the block's i; x and out are FP32 of `width` columns, a multiple of 4. A part of a step's
// rows is gathered by passing a pointer into its list.
extern "C" __global__ void __launch_bounds__(256) gather_rows(
    float* out, const float* x, const u32* logit_rows, u32 width) {
    grid_start();
    const float4* from = reinterpret_cast<const float4*>(x + (u64)logit_rows[blockIdx.x] * width);
    float4* to = reinterpret_cast<float4*>(out + (u64)blockIdx.x * width);
    for (u32 i = threadIdx.x; i < width / 4; i += 256) {
        to[i] = from[i];
    }
}
