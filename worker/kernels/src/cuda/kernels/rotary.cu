// Rotary embedding with optional norms per head, and the store of K and V into the paged pool.
//
//   rotary_angles   once per step: cosines and sines of every row's position
//   rotate_store_*  once per layer: queries and keys normed (Qwen3) and rotated in place, K and V stored in the format
//
// Bound by bytes with many rows (a row of 48 heads of 128: 24 KiB read, 20 KiB written, 2 to 4 KiB stored) and by latency
// with few. A team of lanes owns a head: every lane holds eight of its values as two float4, chosen so that the two
// partners of a rotation meet in one lane; a head is read once, into registers, and a norm's sum is a few shuffles
// inside the team. Teams of 8 lanes (heads up to 64), 16 (up to 128, among them 96: four lanes idle) or 32 (up to 256)
// fill a warp, so that its requests cover 1 KiB, and no barrier is needed. The heads of a row are spread over blocks, so
// that a decode step of few rows keeps more than a few multiprocessors busy.
//
// Pool: block = layers x (K | V), K and V = [kv head][16 tokens][head_dim]; a token of a head is consecutive.
//
// Shapes: head_dim is a multiple of 8 up to 256, rotary_dim a multiple of 8 up to head_dim, rows start at multiples of 16
// bytes.

constexpr u32 BLOCK_TOKENS = 16;
constexpr u32 ROTARY_THREADS = 256;
// The slot of a row that pads a batch: nothing is stored for it.
constexpr u32 NO_SLOT = 0xffffffffu;

// angles [rows, 2, pairs]: cosines, then sines, of position * frequency, both times `factor` (YaRN's attention factor).
// The product is FP32 as on the CPU. sincosf reduces large arguments in a slow path: in this kernel,
// once per step, and not in every layer's.
// Grid: rows * pairs / 256 blocks, rounded up.
extern "C" __global__ void __launch_bounds__(256) rotary_angles(
    float* angles, const u32* positions, const float* inverse_frequencies, u32 rows, u32 pairs, float factor) {
    grid_start();
    const u32 index = blockIdx.x * 256 + threadIdx.x;
    if (index >= rows * pairs) {
        return;
    }
    const u32 row = index / pairs;
    const u32 pair = index % pairs;
    float sine, cosine;
    sincosf((float)positions[row] * inverse_frequencies[pair], &sine, &cosine);
    float* out = angles + (u64)row * 2 * pairs + pair;
    out[0] = cosine * factor;
    out[pairs] = sine * factor;
}

// The numbers of one launch.
struct RotaryShape {
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 rotary_dim;
};

// Eight values of a head: two float4 that start at `at[0]` and `at[1]`.
struct Eight {
    float v[8];
    u32 at[2];
    // Whether the lane holds values, and whether v[i] and v[4 + i] are partners of a rotation.
    bool holds;
    bool turns;
};

// Lane `part` of a team: the first rotary_dim / 8 lanes hold partners, the others what is not rotated.
DEV Eight eight_of(u32 part, const RotaryShape& shape) {
    Eight e;
    const u32 turning = shape.rotary_dim / 8;
    e.holds = part < shape.head_dim / 8;
    e.turns = part < turning;
    e.at[0] = e.turns ? 4 * part : shape.rotary_dim + 8 * (part - turning);
    e.at[1] = e.at[0] + (e.turns ? shape.rotary_dim / 2 : 4);
    return e;
}

DEV void load_eight(Eight& e, const float* head) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (e.holds) {
            v = *reinterpret_cast<const float4*>(head + e.at[half]);
        }
        e.v[4 * half] = v.x, e.v[4 * half + 1] = v.y, e.v[4 * half + 2] = v.z, e.v[4 * half + 3] = v.w;
    }
}

DEV void store_eight(const Eight& e, float* head) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        *reinterpret_cast<float4*>(head + e.at[half]) =
            make_float4(e.v[4 * half], e.v[4 * half + 1], e.v[4 * half + 2], e.v[4 * half + 3]);
    }
}

// Warp: RMS norm of each team's head, v * (factor * gain) as the CPU multiplies. `normed` may differ between teams.
DEV void norm_eight(Eight& e, const float* gain, const RotaryShape& shape, float epsilon, u32 team, bool normed) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        sum += e.v[i] * e.v[i];
    }
    for (u32 step = 1; step < team; step *= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    if (!normed || !e.holds) {
        return;
    }
    const float factor = 1.0f / sqrtf(sum / (float)shape.head_dim + epsilon);
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float4 g = *reinterpret_cast<const float4*>(gain + e.at[half]);
        e.v[4 * half] *= factor * g.x;
        e.v[4 * half + 1] *= factor * g.y;
        e.v[4 * half + 2] *= factor * g.z;
        e.v[4 * half + 3] *= factor * g.w;
    }
}

// (a, b) -> (a cos - b sin, b cos + a sin), the Hugging Face order of halves. cosines [rotary_dim / 2], sines behind.
DEV void rotate_eight(Eight& e, const float* cosines, u32 pairs) {
    const float4 c = *reinterpret_cast<const float4*>(cosines + e.at[0]);
    const float4 s = *reinterpret_cast<const float4*>(cosines + pairs + e.at[0]);
    const float cosine[4] = {c.x, c.y, c.z, c.w};
    const float sine[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const float a = e.v[i];
        const float b = e.v[4 + i];
        e.v[i] = a * cosine[i] - b * sine[i];
        e.v[4 + i] = b * cosine[i] + a * sine[i];
    }
}

// ----------------------------------------------------------------------------------------------------- pool formats
// A format stores four values that follow each other. Formats with a largest value saturate, NaN included: the codes for
// infinity and NaN are never stored, as attention decodes without looking for them.

DEV float within(float v, float largest) {
    return fminf(fmaxf(v, -largest), largest);
}

struct StoreBf16 {
    static constexpr u32 BYTES = 2;
    static __device__ __forceinline__ void four(u8* to, const float* v, float) {
        *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16x2(v[0], v[1]), pack_bf16x2(v[2], v[3]));
    }
};

struct StoreF16 {
    static constexpr u32 BYTES = 2;
    static __device__ __forceinline__ void four(u8* to, const float* v, float) {
        const float top = 65504.0f;
        *reinterpret_cast<uint2*>(to) = make_uint2(pack_f16x2(within(v[0], top), within(v[1], top)),
                                                   pack_f16x2(within(v[2], top), within(v[3], top)));
    }
};

// v / scale, as a product with 1 / scale like the CPU's.
struct StoreE4m3 {
    static constexpr u32 BYTES = 1;
    static __device__ __forceinline__ void four(u8* to, const float* v, float inverse) {
        const float top = 448.0f;
        const u32 lo = pack_e4m3x2(within(v[0] * inverse, top), within(v[1] * inverse, top));
        const u32 hi = pack_e4m3x2(within(v[2] * inverse, top), within(v[3] * inverse, top));
        *reinterpret_cast<u32*>(to) = lo | hi << 16;
    }
};

struct StoreE5m2 {
    static constexpr u32 BYTES = 1;
    static __device__ __forceinline__ void four(u8* to, const float* v, float) {
        const float top = 57344.0f;
        const u32 lo = pack_e5m2x2(within(v[0], top), within(v[1], top));
        const u32 hi = pack_e5m2x2(within(v[2], top), within(v[3], top));
        *reinterpret_cast<u32*>(to) = lo | hi << 16;
    }
};

// -------------------------------------------------------------------------------------------------------- the kernel

// Where a launch stores K and V, and with which scales (null: none).
struct PoolPlace {
    u8* pool;
    u64 block_bytes;
    // Bytes before the layer within a block.
    u64 layer_offset;
    // Scales of the layer's heads [kv_heads].
    const float* k_scales;
    const float* v_scales;
};

// The norms' gains [head_dim]; null where there is none.
struct HeadNorms {
    const float* query;
    const float* key;
    float epsilon;
};

template <class Store>
DEV void store_kv(const Eight& e, const PoolPlace& place, const RotaryShape& shape, u32 slot, bool value, u32 head) {
    const u64 head_bytes = (u64)shape.head_dim * BLOCK_TOKENS * Store::BYTES;
    const u64 side = value ? shape.kv_heads * head_bytes : 0;
    const u64 token = (u64)(slot % BLOCK_TOKENS) * shape.head_dim * Store::BYTES;
    u8* to = place.pool + slot / BLOCK_TOKENS * place.block_bytes + place.layer_offset + side + head * head_bytes + token;
    const float* scales = value ? place.v_scales : place.k_scales;
    const float inverse = scales == nullptr ? 1.0f : 1.0f / scales[head];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        Store::four(to + e.at[half] * Store::BYTES, e.v + 4 * half, inverse);
    }
}

template <class Store>
DEV void rotate_and_store(float* qkv, const float* angles, const u32* slots, const RotaryShape& shape,
                          const HeadNorms& norms, const PoolPlace& place) {
    const u32 team = shape.head_dim <= 64 ? 8 : shape.head_dim <= 128 ? 16 : 32;
    const u32 row = blockIdx.x;
    const u32 all = shape.heads + 2 * shape.kv_heads;
    const u32 head = blockIdx.y * (ROTARY_THREADS / team) + threadIdx.x / team;
    const bool inside = head < all;
    const bool is_query = head < shape.heads;
    const bool is_value = head >= shape.heads + shape.kv_heads;

    Eight e = eight_of(threadIdx.x % team, shape);
    e.holds = e.holds && inside;
    float* values = qkv + ((u64)row * all + head) * shape.head_dim;
    load_eight(e, values);

    const float* gain = is_query ? norms.query : norms.key;
    norm_eight(e, gain, shape, norms.epsilon, team, gain != nullptr && !is_value);
    if (!e.holds) {
        return;
    }
    if (!is_value) {
        if (e.turns) {
            rotate_eight(e, angles + (u64)row * shape.rotary_dim, shape.rotary_dim / 2);
        }
        store_eight(e, values);
    }
    if (!is_query && slots[row] != NO_SLOT) {
        const u32 first = is_value ? shape.heads + shape.kv_heads : shape.heads;
        store_kv<Store>(e, place, shape, slots[row], is_value, head - first);
    }
}

// qkv [rows, (heads + 2 kv_heads) head_dim]: queries, keys, values. angles as rotary_angles leaves them. slots [rows]:
// block * 16 + offset, or NO_SLOT. query_norm and key_norm [head_dim] or null. layer_offset: bytes of the layers before
// within a block. k_scales, v_scales: of this layer [kv_heads]; read by the E4M3 form alone.
// Grid: (rows, heads of all kinds / heads of a block, rounded up); a block takes 256 / team heads: 32 of up to 64
// elements, 16 of up to 128, 8 of up to 256.

extern "C" __global__ void __launch_bounds__(256) rotate_store_bf16(
    float* qkv, u8* pool, const float* angles, const u32* slots, const float* query_norm, const float* key_norm,
    u32 heads, u32 kv_heads, u32 head_dim, u32 rotary_dim, float epsilon, u64 block_bytes, u64 layer_offset) {
    grid_start();
    rotate_and_store<StoreBf16>(qkv, angles, slots, RotaryShape{heads, kv_heads, head_dim, rotary_dim},
                                HeadNorms{query_norm, key_norm, epsilon},
                                PoolPlace{pool, block_bytes, layer_offset, nullptr, nullptr});
}

extern "C" __global__ void __launch_bounds__(256) rotate_store_f16(
    float* qkv, u8* pool, const float* angles, const u32* slots, const float* query_norm, const float* key_norm,
    u32 heads, u32 kv_heads, u32 head_dim, u32 rotary_dim, float epsilon, u64 block_bytes, u64 layer_offset) {
    grid_start();
    rotate_and_store<StoreF16>(qkv, angles, slots, RotaryShape{heads, kv_heads, head_dim, rotary_dim},
                               HeadNorms{query_norm, key_norm, epsilon},
                               PoolPlace{pool, block_bytes, layer_offset, nullptr, nullptr});
}

extern "C" __global__ void __launch_bounds__(256) rotate_store_e4m3(
    float* qkv, u8* pool, const float* angles, const u32* slots, const float* query_norm, const float* key_norm,
    const float* k_scales, const float* v_scales, u32 heads, u32 kv_heads, u32 head_dim, u32 rotary_dim, float epsilon,
    u64 block_bytes, u64 layer_offset) {
    grid_start();
    rotate_and_store<StoreE4m3>(qkv, angles, slots, RotaryShape{heads, kv_heads, head_dim, rotary_dim},
                                HeadNorms{query_norm, key_norm, epsilon},
                                PoolPlace{pool, block_bytes, layer_offset, k_scales, v_scales});
}

extern "C" __global__ void __launch_bounds__(256) rotate_store_e5m2(
    float* qkv, u8* pool, const float* angles, const u32* slots, const float* query_norm, const float* key_norm,
    u32 heads, u32 kv_heads, u32 head_dim, u32 rotary_dim, float epsilon, u64 block_bytes, u64 layer_offset) {
    grid_start();
    rotate_and_store<StoreE5m2>(qkv, angles, slots, RotaryShape{heads, kv_heads, head_dim, rotary_dim},
                                HeadNorms{query_norm, key_norm, epsilon},
                                PoolPlace{pool, block_bytes, layer_offset, nullptr, nullptr});
}
