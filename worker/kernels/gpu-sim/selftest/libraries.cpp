// The reference cuBLASLt and NCCL, called as cudarc calls them.
#include <cstring>
#include <thread>

#include "harness.h"

extern "C" {
int cublasLtCreate(void**);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*, const void*,
                   void*, size_t, void*);
struct NcclId {
    char bytes[128];
};
int ncclGetUniqueId(NcclId*);
int ncclCommInitRank(void**, int, NcclId, int);
int ncclCommAbort(void*);
int ncclAllReduce(const void*, void*, size_t, int, int, void*, void*);
int ncclAllGather(const void*, void*, size_t, int, void*, void*);
int ncclBroadcast(const void*, void*, size_t, int, int, void*, void*);
}

namespace test {

enum { FP32 = 0, INT8 = 3, INT32 = 10, BF16 = 14, E4M3 = 28, COMPUTE_32F = 68, COMPUTE_32I = 72, NOT_SUPPORTED = 15 };
enum { TRANSPOSE_A = 3, A_SCALE = 17, B_SCALE = 18, A_SCALE_MODE = 31, B_SCALE_MODE = 32 };

// D[m, n] = A[m, k] B[n, k]^T, column-major D, rows of k contiguous elements.
struct Product {
    int type, output, compute, scale_type;
    uint64_t m, n, k;
    void *handle = nullptr, *desc = nullptr, *a = nullptr, *b = nullptr, *d = nullptr;

    Product(int type_, int output_, int compute_, int scale_, uint64_t m_, uint64_t n_, uint64_t k_)
        : type(type_), output(output_), compute(compute_), scale_type(scale_), m(m_), n(n_), k(k_) {
        const int transposed = 1;
        REQUIRE(cublasLtCreate(&handle) == 0 && cublasLtMatmulDescCreate(&desc, compute, scale_type) == 0);
        REQUIRE(cublasLtMatmulDescSetAttribute(desc, TRANSPOSE_A, &transposed, 4) == 0);
        REQUIRE(cublasLtMatrixLayoutCreate(&a, type, k, m, (int64_t)k) == 0 && cublasLtMatrixLayoutCreate(&b, type, k, n, (int64_t)k) == 0);
        REQUIRE(cublasLtMatrixLayoutCreate(&d, output, m, n, (int64_t)m) == 0);
    }
    void scales(uint64_t of_a, uint64_t of_b) {
        const int outer_vector = 3;
        REQUIRE(cublasLtMatmulDescSetAttribute(desc, A_SCALE, &of_a, 8) == 0 && cublasLtMatmulDescSetAttribute(desc, B_SCALE, &of_b, 8) == 0);
        REQUIRE(cublasLtMatmulDescSetAttribute(desc, A_SCALE_MODE, &outer_vector, 4) == 0 &&
                cublasLtMatmulDescSetAttribute(desc, B_SCALE_MODE, &outer_vector, 4) == 0);
    }
    int heuristic() {
        void* preference = nullptr;
        char result[128];
        int found = 0;
        REQUIRE(cublasLtMatmulPreferenceCreate(&preference) == 0);
        return cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, d, d, preference, 1, result, &found);
    }
    int run(uint64_t pa, uint64_t pb, uint64_t pd) {
        const float one = 1.0f, zero = 0.0f;
        const int i_one = 1, i_zero = 0;
        const bool integer = scale_type == INT32;
        return cublasLtMatmul(handle, desc, integer ? (const void*)&i_one : &one, (void*)pa, a, (void*)pb, b, integer ? (const void*)&i_zero : &zero,
                              (void*)pd, d, (void*)pd, d, nullptr, nullptr, 0, nullptr);
    }
};

static void test_int8() {
    constexpr uint64_t M = 8, N = 3, K = 20;
    std::vector<int8_t> a(M * K), b(N * K);
    for (int8_t& v : a) v = (int8_t)next_random();
    for (int8_t& v : b) v = (int8_t)next_random();
    Buffer<int8_t> da(a), db(b);
    Buffer<int32_t> dd(M * N);
    Product product(INT8, INT32, COMPUTE_32I, INT32, M, N, K);
    CHECK(product.heuristic() == 0 && product.run(da.p, db.p, dd.p) == 0);
    const std::vector<int32_t> got = dd.get();
    for (uint64_t row = 0; row < M; row++) {
        for (uint64_t column = 0; column < N; column++) {
            int want = 0;
            for (uint64_t i = 0; i < K; i++) {
                want += a[row * K + i] * b[column * K + i];
            }
            CHECK(got[column * M + row] == want);
        }
    }
    CHECK(Product(INT8, INT32, COMPUTE_32I, INT32, M, N, 18).heuristic() == NOT_SUPPORTED);
    CHECK(Product(INT8, INT32, COMPUTE_32F, FP32, M, N, K).heuristic() == NOT_SUPPORTED);
}

static void test_fp8() {
    constexpr uint64_t M = 16, N = 2, K = 16;
    Buffer<uint8_t> a(std::vector<uint8_t>(M * K, 0x40)), b(std::vector<uint8_t>(N * K, 0x38));  // 2 and 1
    std::vector<float> of_rows(M), of_columns{1.0f, 0.25f};
    for (uint64_t i = 0; i < M; i++) of_rows[i] = (float)(1 + i);
    Buffer<float> sa(of_rows), sb(of_columns);
    Buffer<float> d(M * N);
    Product product(E4M3, FP32, COMPUTE_32F, FP32, M, N, K);
    CHECK(product.run(a.p, b.p, d.p) == 0 && d.get()[5] == 32.0f);
    product.scales(sa.p, sb.p);
    CHECK(product.heuristic() == 0 && product.run(a.p, b.p, d.p) == 0);
    const std::vector<float> got = d.get();
    CHECK(got[3] == 32.0f * 4 && got[M + 3] == 32.0f * 4 * 0.25f);
    CHECK(product.run(a.p + 8, b.p, d.p) == NOT_SUPPORTED);  // alignment
    CHECK(Product(E4M3, BF16, COMPUTE_32F, FP32, M, N, 24).heuristic() == NOT_SUPPORTED);
    CHECK(Product(E4M3, BF16, COMPUTE_32F, FP32, 24, N, K).heuristic() == NOT_SUPPORTED);
}

static void test_bf16() {
    Buffer<uint16_t> a(std::vector<uint16_t>(3 * 5, 0x3fc0)), b(std::vector<uint16_t>(5, 0xc000)), d(3);  // 1.5 and -2
    CHECK(Product(BF16, BF16, COMPUTE_32F, FP32, 3, 1, 5).run(a.p, b.p, d.p) == 0);
    CHECK(d.get()[2] == 0xc170);  // -15
}

// One thread a device, as tensor parallelism has it; each waits only for its own stream.
static void rank(int number, NcclId id, std::vector<float>* result) {
    void *context = nullptr, *comm = nullptr, *stream = nullptr;
    REQUIRE(cuDevicePrimaryCtxRetain(&context, number) == 0 && cuCtxSetCurrent(context) == 0);
    REQUIRE(ncclCommInitRank(&comm, 2, id, number) == 0 && cuStreamCreate(&stream, 1) == 0);
    constexpr int NCCL_FP32 = 7, SUM = 0;
    Buffer<float> data(std::vector<float>(4, (float)(number + 1))), gathered(8), root(std::vector<float>(1, (float)(10 + number)));
    for (int i = 0; i < 3; i++) {
        CHECK(ncclAllReduce((void*)data.p, (void*)data.p, 4, NCCL_FP32, SUM, comm, stream) == 0);
    }
    CHECK(ncclAllGather((void*)data.p, (void*)gathered.p, 4, NCCL_FP32, comm, stream) == 0);
    CHECK(ncclBroadcast((void*)root.p, (void*)root.p, 1, NCCL_FP32, 1, comm, stream) == 0);
    CHECK(cuStreamSynchronize(stream) == 0);
    *result = gathered.get();
    result->push_back(root.get()[0]);
    CHECK(ncclCommAbort(comm) == 0);
}

// A rank that another one never comes to is let go by its abort, and its stream goes on, without a result.
static void test_abort() {
    NcclId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    void* comms[2] = {};
    std::vector<float> left;
    std::thread waits([&] {
        void *context = nullptr, *stream = nullptr;
        REQUIRE(cuDevicePrimaryCtxRetain(&context, 1) == 0 && cuCtxSetCurrent(context) == 0);
        REQUIRE(ncclCommInitRank(&comms[1], 2, id, 1) == 0 && cuStreamCreate(&stream, 1) == 0);
        Buffer<float> data(std::vector<float>(4, 3.0f));
        CHECK(ncclAllReduce((void*)data.p, (void*)data.p, 4, 7, 0, comms[1], stream) == 0);
        std::thread aborts([&] { CHECK(ncclCommAbort(comms[1]) == 0); });
        CHECK(cuStreamSynchronize(stream) == 0);
        aborts.join();
        left = data.get();
    });
    void* context = nullptr;
    REQUIRE(cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
    REQUIRE(ncclCommInitRank(&comms[0], 2, id, 0) == 0);
    waits.join();
    CHECK(ncclCommAbort(comms[0]) == 0);
    CHECK(left == std::vector<float>(4, 3.0f));
}

static void test_nccl() {
    NcclId id;
    REQUIRE(ncclGetUniqueId(&id) == 0);
    std::vector<float> of_0, of_1;
    std::thread other(rank, 1, id, &of_1);
    rank(0, id, &of_0);
    other.join();
    const std::vector<float> want{12, 12, 12, 12, 12, 12, 12, 12, 11};  // (1 + 2) doubled twice
    CHECK(of_0 == want && of_1 == want);
}

void libraries() {
    test_int8();
    test_fp8();
    test_bf16();
    test_nccl();
    test_abort();
}

}  // namespace test
