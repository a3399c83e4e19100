// What the instructions of the kernels' own hopper_ptx.h do, on a CPU: each CUDA thread is a fiber.
//
// Asynchronous things happen late on purpose, at a moment that the seed chooses, and what hardware
// would punish is an error here: see emulator.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint32_t u32;
typedef uint64_t u64;
typedef uint16_t u16;

#define DEVICE inline
#define KERNEL(threads) static void
#define ARGUMENTS(type) const type&
#define UNROLL

struct alignas(64) TensorMap {  // the test fills it; sizes in elements, steps in bytes
    const u16* base;
    u64 sizes[4], steps[3];
    u32 box[4];
    char rest[128 - 80];
};
static_assert(sizeof(TensorMap) == 128, "as large as a CUtensorMap");
struct alignas(16) Float4 {
    float x, y, z, w;
};
struct alignas(16) Words4 {
    u32 x, y, z, w;
};

namespace emu {
int thread();
int block();
int blocks();
u32 base();
void mbarrier_init(u32 barrier, u32 count);
void mbarrier_expect(u32 barrier, u32 bytes);
void mbarrier_arrive(u32 barrier);
void mbarrier_wait(u32 barrier, u32 parity);
void tma_load(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w);
void wgmma(float* d, int columns, const u32* a_registers, u64 a, u64 b, bool add, bool a_rows,
           bool b_rows);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);
void barrier(int id, int threads, bool wait);
bool barrier_any(int id, int threads, bool x);
void block_sync();
void warp_sync();
void fence_async();
void store_matrices(u32 at, const u32* r);
float across(float x, int mask);
void look();   // another thread may run; to look too often at what nobody changes is an error
int& looks();  // since somebody changed something
}  // namespace emu

DEVICE int thread_index() { return emu::thread(); }
DEVICE int uniform(int x) { return x; }
DEVICE int block_index() { return emu::block(); }
DEVICE int block_count() { return emu::blocks(); }
DEVICE u32 shared_base() { return emu::base(); }

DEVICE void mbarrier_init(u32 barrier, u32 count) { emu::mbarrier_init(barrier, count); }
DEVICE void fence_mbarrier_init() {}
DEVICE void mbarrier_expect(u32 barrier, u32 bytes) { emu::mbarrier_expect(barrier, bytes); }
DEVICE void mbarrier_arrive(u32 barrier) { emu::mbarrier_arrive(barrier); }
DEVICE void mbarrier_wait(u32 barrier, u32 parity) { emu::mbarrier_wait(barrier, parity); }
DEVICE void tma_prefetch(const TensorMap*) {}
DEVICE void tma_load(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w) {
    emu::tma_load(to, map, barrier, x, y, z, w);
}

struct Operand {
    u32 low, high;
    Operand operator+(int step) const { return {low + step, high}; }
    u64 whole() const { return (u64)high << 32 | low; }
};
DEVICE void wgmma_fence() { emu::wgmma_fence(); }
DEVICE void wgmma_commit() { emu::wgmma_commit(); }
template <int PENDING>
DEVICE void wgmma_wait() {
    emu::wgmma_wait(PENDING);
}
template <class T, int COUNT>
DEVICE void pin(T (&)[COUNT]) {}
template <int A_ROWS, int B_ROWS, int COUNT>
DEVICE void wgmma(float (&d)[COUNT], Operand a, Operand b, int add) {
    emu::wgmma(d, 2 * COUNT, nullptr, a.whole(), b.whole(), add, A_ROWS, B_ROWS);
}
template <int B_ROWS, int COUNT>
DEVICE void wgmma_registers(float (&d)[COUNT], const u32* a, Operand b, int add) {
    emu::wgmma(d, 2 * COUNT, a, 0, b.whole(), add, false, B_ROWS);
}

template <int COUNT>
DEVICE void registers_up() {}
template <int COUNT>
DEVICE void registers_down() {}
DEVICE void barrier_sync(int id, int threads) { emu::barrier(id, threads, true); }
DEVICE void barrier_arrive(int id, int threads) { emu::barrier(id, threads, false); }
DEVICE bool barrier_any(int id, int threads, bool x) { return emu::barrier_any(id, threads, x); }
DEVICE void block_sync() { emu::block_sync(); }
DEVICE void warp_sync() { emu::warp_sync(); }
DEVICE void fence_async() { emu::fence_async(); }

DEVICE void store_matrices(u32 at, const u32* r) { emu::store_matrices(at, r); }
DEVICE void settle(float x, u32) {
    if (x < 0) __builtin_trap();
}
DEVICE u32 bits_of(float x) {
    u32 y;
    memcpy(&y, &x, 4);
    return y;
}
DEVICE float float_of(u32 x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
DEVICE u32 bfloat16_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack(float low, float high) { return bfloat16_bits(low) | bfloat16_bits(high) << 16; }
DEVICE float exp2_fast(float x) {
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.f : y;
}
DEVICE float fma_once(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float times(float a, float b) { return a * b; }  // compiled with -ffp-contract=off
DEVICE float over(float a, float b) { return a / b; }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float nearest(float a) { return rintf(a); }
DEVICE float log2_of(float a) { return log2f(a); }
DEVICE float power_of_two(float n) { return n < -126.f ? 0.f : ldexpf(1.f, (int)n); }
DEVICE float exponent(float x) { return std::isfinite(x) ? (float)std::ilogb(x) : 128.f; }
DEVICE float infinity() { return INFINITY; }
DEVICE bool warp_any(bool x) {
    for (int mask = 1; mask < 32; mask *= 2) x |= emu::across(x, mask) != 0;
    return x;
}
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE float across(float x, int mask) { return emu::across(x, mask); }

DEVICE void add_global(float* at, float a, float b, float c, float d) {
    if ((uintptr_t)at % 16) __builtin_trap();
    at[0] += a, at[1] += b, at[2] += c, at[3] += d;
}
DEVICE u32 load_acquire(const u32* at) {
    emu::look();
    return *(volatile const u32*)at;
}
DEVICE void store_release(u32* at, u32 x) {
    emu::looks() = 0;
    *at = x;
}
