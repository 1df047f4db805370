// Group-wise codes and their layout: w = row_scale (scale q + minimum), one scale and minimum for 32, 64 or 128 inputs.
//
// A strip is 32 outputs, a unit 32 inputs of a strip. One unit is 512 bytes for a warp: lane (g, t) owns the 16 bytes of
// word j = 8 inputs 8 t .. 8 t + 7 of output g + 8 j:
//
//   codes   [strip][unit][planes][lane][j] u32      nibble of input i at bit 4 (i / 2) + 16 (i % 2)
//   affine  [strip][group][g][scale j | minimum j]  FP16, 16 bytes for one g
//
// Eight-bit codes are two planes of nibbles, the lower ones first: q = low + 16 high. Two pairs of neighbouring nibbles
// 16 bits apart become two BF16 with one AND-OR and one subtraction, the lower nibble of each half word in place:
// 0x4300 | q is the BF16 number 128 + q (Kim, Henry, Fahim and Awadalla 2022, section 3.3, for FP16).
//
// Why eight inputs in a row for a lane and not the four pairs of the fragment's definition: the order of k inside mma is
// free, and so a lane's activations are 16 consecutive bytes too, in shared as in global memory.
//
// Scales and minima are applied to the FP32 sum of a group, and not folded into the unpacked values: codes are exact in
// BF16, s q + m is not, and this is what the definition (W4A16) sums. The minimum's part is m times the sum of the group's
// activations, for which one more mma with an operand of ones gives all rows of a tile: half of the products for up to
// 8 rows, a quarter for 16, an eighth and a sixteenth for 32 and 64.

#define INT4_STRIP 32
#define INT4_UNIT_BYTES 512
#define INT4_AFFINE_BYTES 128
// Two BF16 ones.
#define INT4_ONES 0x3f803f80u

// 8 inputs of one output as four BF16 pairs.
template <int PLANES>
DEV void int4_unpack(const u32 (&words)[PLANES], u32 (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 low = sub_bf16x2(and_or(words[0] >> (4 * i), 0x000f000fu, 0x43004300u), 0x43004300u);
        if (PLANES == 1) {
            pairs[i] = low;
        } else {
            const u32 high =
                sub_bf16x2(and_or(words[PLANES - 1] >> (4 * i), 0x000f000fu, 0x43004300u), 0x43004300u);
            pairs[i] = fma_bf16x2(high, 0x41804180u, low);  // 16 high + low: at most 255, eight bits, exact
        }
    }
}

// Four scales or four minima: those of outputs g, g + 8, g + 16, g + 24.
DEV void int4_halves(u32 first, u32 second, float (&values)[4]) {
    float low[2], high[2];
    f16x2_to_f32(first, low);
    f16x2_to_f32(second, high);
    values[0] = low[0], values[1] = low[1], values[2] = high[0], values[3] = high[1];
}
struct Int4Affine {
    float scale[4];
    float min[4];
};
DEV Int4Affine int4_affine(uint4 v) {
    Int4Affine affine;
    int4_halves(v.x, v.y, affine.scale);
    int4_halves(v.z, v.w, affine.min);
    return affine;
}

DEV u32 int4_word(uint4 v, int j) {
    return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w;
}
