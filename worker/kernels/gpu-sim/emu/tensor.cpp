// mma and ldmatrix. The fragment layouts are those of the PTX ISA, sections 9.7.14.5.8, .10 and .15; with g = lane / 4
// and t = lane % 4 (prim.cuh repeats them). Sums are FP32 in the order of k: a tensor core's own order and rounding are
// not documented.
#include <cstring>

#include "runtime.h"

namespace emu {

using Row8 = float __attribute__((vector_size(32)));

// Whether the compiler may keep a product's eight columns in one register decides the emulator's speed.
template <int K>
struct Tile {
    alignas(32) float a[16][K];
    Row8 b[K];  // b[k][column]
};

template <class Sum>
static Sum* sums_of(Operands& operands, int lane) { return (Sum*)operands[lane]; }

// The four elements of D that a lane holds.
template <class Sum>
static void store_fragment(Operands& out, int lane, const Sum (&d)[16][8]) {
    const int g = lane >> 2, t = lane & 3;
    Sum* mine = sums_of<Sum>(out, lane);
    mine[0] = d[g][2 * t];
    mine[1] = d[g][2 * t + 1];
    mine[2] = d[g + 8][2 * t];
    mine[3] = d[g + 8][2 * t + 1];
}
template <class Sum>
static void load_fragment(const MmaOperand& operand, int lane, Sum (&d)[16][8]) {
    const int g = lane >> 2, t = lane & 3;
    Sum mine[4];
    memcpy(mine, operand.c, sizeof mine);
    d[g][2 * t] = mine[0];
    d[g][2 * t + 1] = mine[1];
    d[g + 8][2 * t] = mine[2];
    d[g + 8][2 * t + 1] = mine[3];
}

static const MmaOperand& operand_of(const Operands& in, int lane) { return *(const MmaOperand*)in[lane]; }

template <int K>
static void multiply(const Tile<K>& tile, const Operands& in, Operands& out) {
    constexpr int ROWS = 4;  // at a time: their sums stay in registers
    alignas(32) float d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        load_fragment(operand_of(in, lane), lane, d);
    }
    for (int row = 0; row < 16; row += ROWS) {
        Row8 sums[ROWS];
        memcpy(sums, d[row], sizeof sums);
        for (int k = 0; k < K; k++) {
            for (int i = 0; i < ROWS; i++) {
                sums[i] += tile.a[row + i][k] * tile.b[k];
            }
        }
        memcpy(d[row], sums, sizeof sums);
    }
    for (int lane = 0; lane < 32; lane++) {
        store_fragment(out, lane, d);
    }
}

// Operands of 16 bit, two in a register.
template <float (*decode)(uint16_t)>
static void compute_mma_16(unsigned, const Operands& in, Operands& out) {
    Tile<16> tile;
    for (int lane = 0; lane < 32; lane++) {
        const MmaOperand& m = operand_of(in, lane);
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++) {
            float* row = &tile.a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1)];
            row[0] = decode((uint16_t)m.a[i]);
            row[1] = decode((uint16_t)(m.a[i] >> 16));
        }
        for (int i = 0; i < 2; i++) {
            tile.b[2 * t + 8 * i][g] = decode((uint16_t)m.b[i]);
            tile.b[2 * t + 8 * i + 1][g] = decode((uint16_t)(m.b[i] >> 16));
        }
    }
    multiply(tile, in, out);
}

static void compute_mma_e4m3(unsigned, const Operands& in, Operands& out) {
    Tile<32> tile;
    for (int lane = 0; lane < 32; lane++) {
        const MmaOperand& m = operand_of(in, lane);
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++) {
            for (int byte = 0; byte < 4; byte++) {
                tile.a[g + 8 * (i & 1)][4 * t + 16 * (i >> 1) + byte] = E4M3_VALUES[m.a[i] >> (8 * byte) & 0xff];
            }
        }
        for (int i = 0; i < 2; i++) {
            for (int byte = 0; byte < 4; byte++) {
                tile.b[4 * t + 16 * i + byte][g] = E4M3_VALUES[m.b[i] >> (8 * byte) & 0xff];
            }
        }
    }
    multiply(tile, in, out);
}

static void compute_mma_s8(unsigned, const Operands& in, Operands& out) {
    int8_t a[16][32], b[8][32];
    uint32_t d[16][8];  // unsigned: sums wrap
    for (int lane = 0; lane < 32; lane++) {
        const MmaOperand& m = operand_of(in, lane);
        const int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++) {
            memcpy(&a[g + 8 * (i & 1)][4 * t + 16 * (i >> 1)], &m.a[i], 4);
        }
        for (int i = 0; i < 2; i++) {
            memcpy(&b[g][4 * t + 16 * i], &m.b[i], 4);
        }
        load_fragment(m, lane, d);
    }
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            int sum = 0;  // 32 products below 2^14 each
            for (int k = 0; k < 32; k++) {
                sum += a[row][k] * b[column][k];
            }
            d[row][column] += (uint32_t)sum;
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        store_fragment(out, lane, d);
    }
}

template <int MATRICES, bool TRANSPOSED>
static void compute_ldmatrix(unsigned, const Operands& in, Operands& out) {
    for (int matrix = 0; matrix < MATRICES; matrix++) {
        uint16_t elements[8][8];
        for (int row = 0; row < 8; row++) {
            memcpy(elements[row], ((const MatrixRow*)in[matrix * 8 + row])->address, sizeof elements[row]);
        }
        for (int lane = 0; lane < 32; lane++) {
            const int g = lane >> 2, t = lane & 3;
            const uint16_t lo = TRANSPOSED ? elements[2 * t][g] : elements[g][2 * t];
            const uint16_t hi = TRANSPOSED ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
            ((uint32_t*)out[lane])[matrix] = lo | (uint32_t)hi << 16;
        }
    }
}

const Collective MMA_BF16{"mma m16n8k16 bf16", true, compute_mma_16<from_bf16>},
    MMA_F16{"mma m16n8k16 f16", true, compute_mma_16<from_f16>}, MMA_E4M3{"mma m16n8k32 e4m3", true, compute_mma_e4m3},
    MMA_S8{"mma m16n8k32 s8", true, compute_mma_s8}, LDMATRIX_X2{"ldmatrix.x2", true, compute_ldmatrix<2, false>},
    LDMATRIX_X4{"ldmatrix.x4", true, compute_ldmatrix<4, false>},
    LDMATRIX_X4_TRANS{"ldmatrix.x4.trans", true, compute_ldmatrix<4, true>};

}  // namespace emu
