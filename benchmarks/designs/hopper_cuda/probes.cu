// One primitive each, so that a fault on the first GPU is found where it is: a copy with its
// swizzle, the products in all the forms that the kernels use, adds in turns.
#include <tiles.h>

constexpr int PROBE_BARRIER = 6 * PANEL;

// out: shared memory as the copy of tokens 128 ... 255 of head 1 left it, 2 panels
KERNEL(128) probe_copy(MAP x, u32* out) {
    u32 base = shared_base(), barrier = base + PROBE_BARRIER;
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
        mbarrier_expect(barrier, TILE<128>);
        load_tile<128>(base, &x, barrier, BLOCK, 1, 2);
    }
    block_sync();
    mbarrier_wait(barrier, 0);
    for (int i = thread_index(); i < TILE<128> / 4; i += 128) out[i] = load_shared(base + 4 * i);
}

template <int COUNT>
DEVICE void show(float* out, const float (&d)[COUNT]) {  // as `fragment` in backward
    UNROLL for (int i = 0; i < COUNT; i++)
        out[i / 4 * 512 + thread_index() * 4 + i % 4] = d[i];
}

// x, y: 128 tokens of D = 128. out: s = x[:64] y^T; bf16(s) y; bf16(s)^T x[:64], rows 0-63 and 64-127;
// then the last two again with D = 64 of y and x. `steps` > 0 leaves out what comes later.
KERNEL(128) probe_products(MAP x, MAP y, float* out, int steps) {
    u32 base = shared_base(), barrier = base + PROBE_BARRIER;
    u32 tile_x = base, tile_y = base + TILE<128>, weights = base + 2 * TILE<128>;
    int lane = thread_index() % 32, warp = thread_index() / 32;
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
        mbarrier_expect(barrier, 2 * TILE<128>);
        load_tile<128>(tile_x, &x, barrier, 0, 0, 1);
        load_tile<128>(tile_y, &y, barrier, 0, 0, 1);
    }
    block_sync();
    mbarrier_wait(barrier, 0);
    float d[64], narrow[32];
    u32 w[32];
    pin(d);
    wgmma_fence();
    scores<128>(d, tile_x, tile_y);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    show(out, d);
    if (steps == 1) return;

    UNROLL for (int i = 0; i < 32; i++) w[i] = pack(d[2 * i], d[2 * i + 1]);
    pin(w);
    pin(d);
    pin(narrow);
    wgmma_fence();
    UNROLL for (int k = 0; k < 8; k++)
        wgmma_registers<1>(d, w + 4 * k, descriptor(tile_y + k * 2048, PANEL), k > 0);
    UNROLL for (int k = 0; k < 8; k++)
        wgmma_registers<1>(narrow, w + 4 * k, descriptor(tile_y + k * 2048, PANEL), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
    pin(narrow);
    show(out + 8192, d);
    show(out + 4 * 8192, narrow);
    if (steps == 2) return;

    u32 to = weights + (16 * warp + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4);
    UNROLL for (int k = 0; k < 8; k++)
        store_matrices((to ^ (k % 4 << 5)) + k / 4 * PANEL, w + 4 * k);
    fence_async();
    block_sync();
    UNROLL for (int part = 0; part < 2; part++) {
        Operand a = descriptor(weights + part * PANEL, PANEL);
        pin(d);
        pin(narrow);
        wgmma_fence();
        UNROLL for (int k = 0; k < 4; k++)
            wgmma<1, 1>(d, a + (k * 2048 >> 4), descriptor(tile_x + k * 2048, PANEL), k > 0);
        UNROLL for (int k = 0; k < 4; k++)
            wgmma<1, 1>(narrow, a + (k * 2048 >> 4), descriptor(tile_x + k * 2048, PANEL), k > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(d);
        pin(narrow);
        show(out + (2 + part) * 8192, d);
        show(out + 4 * 8192 + (1 + part) * 4096, narrow);
    }
}

// Each block adds 1 to out[0 .. 511], and doubles and adds its index to out[512 ...] in its turn.
KERNEL(128) probe_adds(float* out, u32* turn) {
    int t = thread_index();
    add_global(out + 4 * t, 1, 1, 1, 1);
    if (t == 0) {
        while (load_acquire(turn) != (u32)block_index()) {
        }
    }
    block_sync();
    float* own = out + 512 + 4 * t;
    for (int i = 0; i < 4; i++) own[i] = 2 * own[i] + block_index();
    fence_device();
    block_sync();
    if (t == 0) store_release(turn, block_index() + 1);
}
