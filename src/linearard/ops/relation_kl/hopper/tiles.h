// What forward and backward share: tiles in shared memory, the ring that a producer fills, products.
//
// A tile is COUNT tokens of one head of one model. It lies in panels of 64 numbers (128 bytes) a
// token, [D / 64][COUNT][128 bytes], as the copy engine leaves a box with the 128-byte swizzle: the
// 16-byte piece p of token r is found at piece p ^ (r % 8).
#pragma once
#include <arguments.h>

constexpr int TOKENS = 64;  // of a box of the copy engine; rows of a warpgroup
DEVICE constexpr int ceiling(int x, int by) { return (x + by - 1) / by; }
constexpr int SPARE = 192;  // bytes from the first mbarrier to 4 bytes beyond all of them

DEVICE constexpr int panel(int count) { return count * 128; }  // bytes
template <int D, int COUNT>
constexpr int TILE = D / 64 * panel(COUNT);  // bytes

// A swizzled matrix whose groups of 8 rows of 128 bytes follow each other; `leading`: bytes from one
// panel to the next, of which only an operand whose rows run along k knows.
DEVICE Operand descriptor(u32 at, u32 leading) {
    return {at >> 4 | leading >> 4 << 16, 1024 >> 4 | 1u << 30};
}

// d [64, COUNT] = the products of 64 of a block's OWN rows, from `own` on, with the tile at `other`
template <int D, int OWN, int COUNT>
DEVICE void scores(float (&d)[COUNT / 2], u32 own, u32 other) {
    Operand a = descriptor(own, 16), b = descriptor(other, 16);
    UNROLL for (int k = 0; k < D / 16; k++) {
        int column = k % 4 * 32;
        wgmma<0, 0>(d, a + ((k / 4 * panel(OWN) + column) >> 4),
                    b + ((k / 4 * panel(COUNT) + column) >> 4), k > 0);
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

// Tiles on their way: teacher's and student's in turns, to READERS warps.
template <int D, int COUNT, int SLOTS, int READERS>
struct Ring {
    u32 data, full, empty;
    int slot = 0;
    u32 phase = 0;
    DEVICE Ring(u32 data, u32 barriers)
        : data(data), full(barriers), empty(barriers + 8 * SLOTS) {}
    DEVICE void init() {
        for (int i = 0; i < SLOTS; i++) {
            mbarrier_init(full + 8 * i, 1);
            mbarrier_init(empty + 8 * i, READERS);
        }
    }
    DEVICE void next() {
        if (++slot == SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    }
    DEVICE u32 tile() { return data + slot * TILE<D, COUNT>; }
    DEVICE u32 arrived() {  // consumer: the tile, once it is there
        mbarrier_wait(full + 8 * slot, phase);
        return tile();
    }
    DEVICE u32 done() { return empty + 8 * slot; }
};

// Where the tiles that a query head reads come from.
struct Source {
    const TensorMap *teacher, *student;
    int head, batch;
    DEVICE Source(const Relations& relations, const Maps& side, int of_all) {
        int r = (of_all >= relations.first[1]) + (of_all >= relations.first[2]);
        int within = of_all - relations.first[r];
        teacher = &side.teacher[r];
        student = &side.student[r];
        batch = within / relations.heads[r];
        head = (within - batch * relations.heads[r]) / side.share[r];
    }
    template <int D, int COUNT>
    DEVICE void load(u32 to, const TensorMap* map, u32 barrier, int token) const {
        UNROLL for (int part = 0; part < D / 64; part++)
            UNROLL for (int more = 0; more < COUNT; more += TOKENS)
                tma_load(to + part * panel(COUNT) + panel(more), map, barrier, 64 * part,
                         token + more, head, batch);
    }
};

// The producer's one thread: the block's own rows.
template <int D, int OWN>
DEVICE void produce_own(u32 own, u32 own_full, const Source& source, int block) {
    tma_prefetch(source.teacher);
    tma_prefetch(source.student);
    mbarrier_expect(own_full, 2 * TILE<D, OWN>);
    source.load<D, OWN>(own, source.teacher, own_full, block * OWN);
    source.load<D, OWN>(own + TILE<D, OWN>, source.student, own_full, block * OWN);
}

// The tiles before `end`, down to `low`.
template <int D, int COUNT, int SLOTS, int READERS>
DEVICE void produce(Ring<D, COUNT, SLOTS, READERS>& ring, const Source& source, int low, int end) {
    for (int n = 0; n < 2 * (end - low); n++) {
        mbarrier_wait(ring.empty + 8 * ring.slot, ring.phase ^ 1);
        u32 full = ring.full + 8 * ring.slot;
        mbarrier_expect(full, TILE<D, COUNT>);
        source.load<D, COUNT>(ring.tile(), n % 2 ? source.student : source.teacher, full,
                              (end - 1 - n / 2) * COUNT);
        ring.next();
    }
}

// Of an accumulator [64, N], element i of a thread lies in column 8 (i / 4) + 2 (lane % 4) + i % 2
// and row 16 warp + lane / 4 + 8 (i / 2 % 2).
DEVICE int half(int i) { return i / 2 % 2; }
DEVICE int column(int i) { return i / 4 * 8 + i % 2; }  // above 2 (lane % 4)
