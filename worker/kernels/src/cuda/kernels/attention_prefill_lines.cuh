// Attention of chunks of a prompt: what a warp knows of its lines, and how scores become probabilities.

// Maxima may grow by this, as a power of two, before outputs are rescaled.
#define PREFILL_SLACK 8.0f

// The state of a warp's lines; lane (g, t) has lines g and g + 8 of each tile. `out`[tile][n][i]: element 2 t + i % 2 of the
// chunk at place n, of line g + 8 (i / 2). `sum` is this lane's part of it.
template <class Cache, int DIM>
struct PrefillLines {
    typedef Prefill<Cache, DIM> P;
    float out[P::TILES][DIM / 8][4];
    float reference[P::TILES][2];
    float sum[P::TILES][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < P::TILES; m++) {
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    out[m][n][i] = 0.0f;
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                reference[m][r] = ATTENTION_NONE;
                sum[m][r] = 0.0f;
            }
        }
    }

    // Moves the reference of lines whose highest score (of this lane's tokens in `highest`) is far above it.
    __device__ __forceinline__ void rescale(float (&highest)[P::TILES][2]) {
#pragma unroll
        for (int m = 0; m < P::TILES; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float high = highest[m][r];
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
                high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
                const bool grows = high > reference[m][r] + PREFILL_SLACK;
                const float correction = grows ? exp2_fast(reference[m][r] - high) : 1.0f;
                reference[m][r] = grows ? high : reference[m][r];
                sum[m][r] *= correction;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    out[m][n][2 * r] *= correction;
                    out[m][n][2 * r + 1] *= correction;
                }
            }
        }
    }

    // Scores, not yet times `factor`, become probabilities.
    __device__ __forceinline__ void probabilities(float (&s)[P::TILES][2 * P::PAIRS][4], float factor) {
        float highest[P::TILES][2];
        bool grows = false;
#pragma unroll
        for (int m = 0; m < P::TILES; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float high = fmaxf(s[m][0][2 * r], s[m][0][2 * r + 1]);
#pragma unroll
                for (int n = 1; n < 2 * P::PAIRS; n++) {
                    high = fmaxf(high, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                }
                highest[m][r] = high * factor;
                grows = grows || highest[m][r] > reference[m][r] + PREFILL_SLACK;
            }
        }
        // A line's own tokens decide: for the warp's other lines the correction is one, which changes no bit.
        if (__any_sync(0xffffffffu, grows)) {
            rescale(highest);
        }
#pragma unroll
        for (int m = 0; m < P::TILES; m++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                // Before its first token a line has no reference; any does, since all its probabilities are zero.
                const float from = reference[m][r] == ATTENTION_NONE ? 0.0f : reference[m][r];
                float total = 0.0f;
#pragma unroll
                for (int n = 0; n < 2 * P::PAIRS; n++) {
#pragma unroll
                    for (int i = 2 * r; i < 2 * r + 2; i++) {
                        s[m][n][i] = exp2_fast(s[m][n][i] * factor - from);
                        total += s[m][n][i];
                    }
                }
                sum[m][r] += total;
            }
        }
    }
};
