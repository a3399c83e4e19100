// What forward and backward share: tiles in shared memory, the ring that a producer fills, products.
//
// A tile is 128 tokens of one head of one model. It lies in panels of 64 numbers (128 bytes) a token,
// [D / 64][128][128 bytes], as the copy engine leaves a box with the 128-byte swizzle: the 16-byte
// piece p of token r is found at piece p ^ (r % 8).
#pragma once
#include <arguments.h>

constexpr int BLOCK = 128;             // tokens of a tile
constexpr int PANEL = BLOCK * 128;     // bytes
constexpr int THREADS = 3 * 128;       // two warpgroups that compute, one that loads
constexpr int PRODUCER = 2;
constexpr int WARPS = 8;               // that compute
constexpr int SPARE = 192;             // bytes from the first mbarrier to 4 bytes beyond all of them

template <int D>
constexpr int TILE = D / 64 * PANEL;  // bytes

// A swizzled matrix whose groups of 8 rows of 128 bytes follow each other; `leading`: bytes from one
// panel to the next, of which only an operand whose rows run along k knows.
DEVICE Operand descriptor(u32 at, u32 leading) {
    return {at >> 4 | leading >> 4 << 16, 1024 >> 4 | 1u << 30};
}

// a [D / 16][4]: the thread's part of 64 rows of a tile, as products take a left operand from registers
template <int D>
DEVICE void left_operand(u32 (&a)[D / 4], u32 tile, int row) {  // row: the thread's first, in the tile
    int lane = thread_index() % 32;
    UNROLL for (int k = 0; k < D / 16; k++) {
        UNROLL for (int q = 0; q < 4; q++) {
            int piece = (k % 4 * 2 + q / 2) ^ (row % 8);
            a[4 * k + q] = load_shared(tile + k / 4 * PANEL + (row + q % 2 * 8) * 128 + piece * 16 +
                                       lane % 4 * 4);
        }
    }
}

// d [64, 64] = the products of the rows in `a` with 64 tokens from `other` on
template <int D>
DEVICE void scores(float (&d)[32], const u32* a, u32 other) {
    Operand b = descriptor(other, 16);
    UNROLL for (int k = 0; k < D / 16; k++)
        wgmma_registers<0>(d, a + 4 * k, b + ((k / 4 * PANEL + k % 4 * 32) >> 4), k > 0);
}

// d [64, 128] = the products of 64 tokens at `own` with the 128 of the tile at `other`
template <int D>
DEVICE void scores(float (&d)[64], u32 own, u32 other) {
    Operand a = descriptor(own, 16), b = descriptor(other, 16);
    UNROLL for (int k = 0; k < D / 16; k++) {
        int step = (k / 4 * PANEL + k % 4 * 32) >> 4;
        wgmma<0, 0>(d, a + step, b + step, k > 0);
    }
}

// Heads together, so that they share the cache, and of them the blocks with most columns first.
struct Place {
    int head, block;
    DEVICE Place(int blocks, int heads, int together) {
        int first = block_index() / (blocks * together) * together;
        int within = block_index() - first * blocks;
        int size = heads - first < together ? heads - first : together;
        head = first + within % size;
        block = blocks - 1 - within / size;
    }
};

// Tiles on their way: teacher's and student's in turns.
template <int D, int SLOTS>
struct Ring {
    u32 data, full, empty;
    int slot = 0;
    u32 phase = 0;
    DEVICE Ring(u32 data, u32 barriers)
        : data(data), full(barriers), empty(barriers + 8 * SLOTS) {}
    DEVICE void init() {
        for (int i = 0; i < SLOTS; i++) {
            mbarrier_init(full + 8 * i, 1);
            mbarrier_init(empty + 8 * i, WARPS);
        }
    }
    DEVICE void next() {
        if (++slot == SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    }
    DEVICE u32 tile() { return data + slot * TILE<D>; }
    DEVICE u32 arrived() {  // consumer: the tile, once it is there
        mbarrier_wait(full + 8 * slot, phase);
        return tile();
    }
    DEVICE u32 done() { return empty + 8 * slot; }
};

// Where a head's tiles come from.
struct Source {
    const TensorMap *teacher, *student;
    int head, batch;
    DEVICE Source(const Relations& relations, int of_all) {
        int r = (of_all >= relations.first[1]) + (of_all >= relations.first[2]);
        int within = of_all - relations.first[r];
        teacher = &relations.teacher[r];
        student = &relations.student[r];
        batch = within / relations.heads[r];
        head = within - batch * relations.heads[r];
    }
    template <int D>
    DEVICE void load(u32 to, const TensorMap* map, u32 barrier, int block) const {
        UNROLL for (int panel = 0; panel < D / 64; panel++)
            tma_load(to + panel * PANEL, map, barrier, 64 * panel, block * BLOCK, head, batch);
    }
};

// The producer's one thread: the block's own tiles.
template <int D>
DEVICE void produce_own(u32 own, u32 own_full, const Source& source, int block) {
    tma_prefetch(source.teacher);
    tma_prefetch(source.student);
    mbarrier_expect(own_full, 2 * TILE<D>);
    source.load<D>(own, source.teacher, own_full, block);
    source.load<D>(own + TILE<D>, source.student, own_full, block);
}

// Those of block, block - 1, ... 0.
template <int D, int SLOTS>
DEVICE void produce(Ring<D, SLOTS>& ring, const Source& source, int block) {
    for (int n = 0; n < 2 * (block + 1); n++) {
        mbarrier_wait(ring.empty + 8 * ring.slot, ring.phase ^ 1);
        u32 full = ring.full + 8 * ring.slot;
        mbarrier_expect(full, TILE<D>);
        source.load<D>(ring.tile(), n % 2 ? source.student : source.teacher, full, block - n / 2);
        ring.next();
    }
}

// The two warpgroups issue products in turns, so that one's exponentials run beside the other's
// products. Group 0 begins.
template <bool TAKEN>
struct Turns {
    int group;
    DEVICE Turns(int group) : group(group) {
        if (TAKEN && group == 1) barrier_arrive(1, 256);
    }
    DEVICE void take() {
        if (TAKEN) barrier_sync(1 + group, 256);
    }
    DEVICE void pass() {
        if (TAKEN) barrier_arrive(2 - group, 256);
    }
};

// Of an accumulator [64, 128], element i of a thread lies in column 8 (i / 4) + 2 (lane % 4) + i % 2
// and row 16 warp + lane / 4 + 8 (i / 2 % 2).
DEVICE int half(int i) { return i / 2 % 2; }
DEVICE int column(int i) { return i / 4 * 8 + i % 2; }  // above 2 (lane % 4)
