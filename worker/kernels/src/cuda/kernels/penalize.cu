// Logit bias and penalties of the sampler. Needs sample.cuh.

// logits [rows, stride]. bias_tokens, bias_values: tokens of a row's range are different from each other. seen_tokens,
// seen_counts: likewise; the count is that of the token in the output, 0 for one of the prompt alone. Tokens outside the
// vocabulary are passed over.
// Grid: one block per row.
extern "C" __global__ void __launch_bounds__(256) penalize(
    float* logits, const SampleRow* rows, const u32* bias_tokens, const float* bias_values, const u32* seen_tokens,
    const u32* seen_counts, u32 vocab, u32 stride) {
    grid_start();
    const SampleRow& row = rows[blockIdx.x];
    float* values = logits + (u64)blockIdx.x * stride;
    for (u32 i = threadIdx.x; i < row.bias_count; i += 256) {
        const u32 token = bias_tokens[row.bias_start + i];
        if (token < vocab) {
            values[token] += bias_values[row.bias_start + i];
        }
    }
    __syncthreads();
    if (row.repetition == 1.0f && row.presence == 0.0f && row.frequency == 0.0f) {
        return;
    }
    for (u32 i = threadIdx.x; i < row.seen_count; i += 256) {
        const u32 token = seen_tokens[row.seen_start + i];
        const u32 count = seen_counts[row.seen_start + i];
        if (token < vocab) {
            float logit = values[token];
            logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
            if (count > 0) {
                logit = __fsub_rn(logit, __fadd_rn(row.presence, __fmul_rn(row.frequency, (float)count)));
            }
            values[token] = logit;
        }
    }
}
