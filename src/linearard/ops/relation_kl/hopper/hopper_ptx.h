// The instructions of Hopper that the kernels use, one small function each, and nothing else.
//
// Nothing is included, so that NVRTC compiles it as well as nvcc. The emulator of the tests brings
// a header of the same name whose functions do on a CPU what the PTX ISA says that these do.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define ARGUMENTS(type) const __grid_constant__ type
#define UNROLL _Pragma("unroll")

struct alignas(64) TensorMap {  // a CUtensorMap, filled by cuTensorMapEncodeTiled
    u64 opaque[16];
};
struct alignas(16) Float4 {
    float x, y, z, w;
};
struct alignas(16) Words4 {
    u32 x, y, z, w;
};

DEVICE int thread_index() { return threadIdx.x; }
// The same number in all lanes, said so that the compiler knows.
DEVICE int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int block_count() { return gridDim.x; }

// Shared memory as the instructions address it, from the first multiple of 1024 on: the swizzle is
// a function of the address.
DEVICE u32 shared_base() {
    extern __shared__ unsigned char shared_bytes[];
    u32 at = (u32)__cvta_generic_to_shared(shared_bytes);
    return (at + 1023u) & ~1023u;
}

// ---- mbarrier -------------------------------------------------------------------------------
DEVICE void mbarrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
DEVICE void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void mbarrier_expect(u32 barrier, u32 bytes) {  // arrives, too
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
DEVICE void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Until the phase of this parity is over. The loop is in C so that each copy has its own label.
DEVICE void mbarrier_wait(u32 barrier, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
}

// ---- tensor memory accelerator --------------------------------------------------------------
DEVICE void tma_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory");
}
// One box at (x, y, z, w), x along the contiguous dimension; `barrier` gets its bytes.
DEVICE void tma_load(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
        "l"((u64)map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

// ---- matrix products of a warpgroup -----------------------------------------------------------
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving uses of accumulators over a wait or a product.
template <int COUNT>
DEVICE void pin(float (&d)[COUNT]) {
    UNROLL for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int COUNT>
DEVICE void pin(u32 (&d)[COUNT]) {
    UNROLL for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// x, which is not negative, is known before anything that follows. The assembler moves arithmetic
// behind a wait for other products, where it would not overlap them, but no store, not even one
// that never happens.
DEVICE void settle(float x, u32 at) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.lt.s32 p, %0, 0;\n@p st.shared.u32 [%1], %0;\n}" ::"r"(
            __float_as_int(x)),
        "r"(at)
        : "memory");
}
DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 x) { return __uint_as_float(x); }

#define D8(i)                                                                                  \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define TEXT32                                                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19," \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TEXT64                                                                                    \
    TEXT32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"     \
           "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// A descriptor of a matrix in shared memory. Steps are added to its low half alone: one addition.
struct Operand {
    u32 low, high;
    DEVICE Operand operator+(int step) const { return {low + step, high}; }
};

// d [64, 128] or [64, 64] (+)= a b over 16 of k; the operands are bfloat16. `A_ROWS`, `B_ROWS`: the
// operand's rows run along k (it is M- or N-major); `add` 0 forgets what d held.
template <int A_ROWS, int B_ROWS>
DEVICE void wgmma(float (&d)[64], Operand a, Operand b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %68, 0;\n"
        "mov.b64 a, {%64, %65};\nmov.b64 b, {%66, %67};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TEXT64
        "}, a, b, p, 1, 1, %69, %70;\n}"
        : D32(0), D32(32)
        : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"(add), "n"(A_ROWS), "n"(B_ROWS));
}
template <int A_ROWS, int B_ROWS>
DEVICE void wgmma(float (&d)[32], Operand a, Operand b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 a, b;\nsetp.ne.b32 p, %36, 0;\n"
        "mov.b64 a, {%32, %33};\nmov.b64 b, {%34, %35};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TEXT32
        "}, a, b, p, 1, 1, %37, %38;\n}"
        : D32(0)
        : "r"(a.low), "r"(a.high), "r"(b.low), "r"(b.high), "r"(add), "n"(A_ROWS), "n"(B_ROWS));
}
// The same with a in registers, four of two numbers each, row-major.
template <int B_ROWS>
DEVICE void wgmma_registers(float (&d)[64], const u32* a, Operand b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %70, 0;\nmov.b64 b, {%68, %69};\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TEXT64
        "}, {%64, %65, %66, %67}, b, p, 1, 1, %71;\n}"
        : D32(0), D32(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "r"(add),
          "n"(B_ROWS));
}
template <int B_ROWS>
DEVICE void wgmma_registers(float (&d)[32], const u32* a, Operand b, int add) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 b;\nsetp.ne.b32 p, %38, 0;\nmov.b64 b, {%36, %37};\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TEXT32
        "}, {%32, %33, %34, %35}, b, p, 1, 1, %39;\n}"
        : D32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "r"(add),
          "n"(B_ROWS));
}
#undef D8
#undef D32
#undef TEXT32
#undef TEXT64

// ---- registers, barriers, fences ----------------------------------------------------------------
template <int COUNT>
DEVICE void registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
DEVICE void barrier_sync(int id, int threads) {
    asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void barrier_arrive(int id, int threads) {
    asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE bool barrier_any(int id, int threads, bool x) {  // waits, too
    u32 any;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.u32 p, %3, 0;\n"
        "barrier.cta.red.or.aligned.pred q, %1, %2, p;\nselp.u32 %0, 1, 0, q;\n}"
        : "=r"(any)
        : "r"(id), "r"(threads), "r"((u32)x)
        : "memory");
    return __any_sync(0xffffffffu, any);  // all lanes agree, said so that the compiler knows
}
DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }
// What this thread stored to shared memory is there for the tensor cores and the copy engine.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- data ---------------------------------------------------------------------------------------
// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
DEVICE void store_matrices(u32 at, const u32* r) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
DEVICE u32 pack(float low, float high) {  // two bfloat16, rounded to nearest
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float fma_once(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float times(float a, float b) { return __fmul_rn(a, b); }  // never part of a multiply-add
DEVICE float over(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float nearest(float a) { return rintf(a); }
DEVICE float log2_of(float a) { return log2f(a); }
DEVICE float power_of_two(float n) {  // n whole, at most 0; exact
    return n < -126.f ? 0.f : __int_as_float((127 + (int)n) << 23);
}
// The whole n with 2^n <= x < 2^(n + 1), of a normal x > 0; 128 of what is not finite.
DEVICE float exponent(float x) { return (float)((int)(__float_as_uint(x) >> 23 & 255) - 127); }
DEVICE float infinity() { return __int_as_float(0x7f800000); }
DEVICE bool warp_any(bool x) { return __any_sync(0xffffffffu, x); }
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE float across(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

DEVICE void add_global(float* at, float a, float b, float c, float d) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(at), "f"(a),
                 "f"(b), "f"(c), "f"(d)
                 : "memory");
}
DEVICE u32 load_acquire(const u32* at) {
    u32 x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
    return x;
}
DEVICE void store_release(u32* at, u32 x) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}
