// Backward at four products a pair: scores of both models, and the weights' row and column parts.
//
// A block owns 128 rows i and walks down from the diagonal over the tiles of columns j that they see.
// Its rows' statistics stay in registers, W = g (P_s - P_t) [64 rows of a warpgroup, 128] is in
// registers what the row part dQ_i += W K_j needs as left operand, and goes to shared memory once, as
// the transposed left operand of the column part dK_j = W^T Q_i, [128, D] of which each warpgroup
// makes 64 rows of both groups' W. That part is added in float32 to global memory. It is made one
// tile late: a group then never waits for the other's W, and the two can take turns at the tensor
// cores half a tile apart. The row part belongs to the block; in a self-relation, where Q is K, it is
// added to the column parts in the end.
//
// What is added lies as the threads hold it, [head][part][block][group][D / 8][128 threads][4], so that
// every add is 16 bytes a thread, 512 a warp; `finish` puts it in rows, scales and rounds it.
//
// ORDERED makes the adds of a tile in an order that the number of blocks alone decides: see Turn. To hand over
// takes some 2.7 us, longer than a step at D = 64. There blocks add by turns to one of two sums (chains), so that
// those that follow each other are two steps apart.
//
// PLAIN: a self-relation in which rows see all before them. What the others need is asked once a tile
// and once a block, but the assembler then arranges the loop so that it takes 4 % longer.
#include <tiles.h>

constexpr int BLOCK = 2 * TOKENS;    // of own rows, and of a tile's columns
constexpr int PANEL = panel(BLOCK);  // bytes
constexpr int GROUPS = 2;            // warpgroups that compute

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

template <int D>
struct BackwardShape {
    static constexpr int SLOTS = D == 128 ? 3 : 6;
    static constexpr int WEIGHTS = (2 + SLOTS) * TILE<D, BLOCK>;  // two of [2 panels][128 rows]
    static constexpr int BARRIERS = WEIGHTS + 4 * PANEL;
    static constexpr int ALL_BARRIERS = 72 + 16 * SLOTS;
    static_assert(ALL_BARRIERS <= SPARE);
    using Tiles = Ring<D, BLOCK, SLOTS, 4 * GROUPS>;
};
template <int D, bool ORDERED>
constexpr int CHAINS = ORDERED && D == 64 ? 2 : 1;

// Where a warpgroup's 64 rows of a block start in the n-th head-sized part of what is added.
template <int D>
DEVICE u64 fragment(int n, int blocks, int block, int group) {
    return (((u64)n * blocks + block) * 2 + group) * (64 * D) + thread_index() % 128 * 4;
}

template <int D>
DEVICE void store_fragment(float* at, const float (&d)[D / 2]) {
    UNROLL for (int q = 0; q < D / 8; q++)
        *(Float4*)(at + 512 * q) = Float4{d[4 * q], d[4 * q + 1], d[4 * q + 2], d[4 * q + 3]};
}
template <int D>
DEVICE void add_fragment(float* at, const float (&d)[D / 2]) {
    UNROLL for (int q = 0; q < D / 8; q++)
        add_global(at + 512 * q, d[4 * q], d[4 * q + 1], d[4 * q + 2], d[4 * q + 3]);
}

// In a quad, lane l's x[i] against lane i's x[l].
DEVICE void transpose(u32 (&x)[4]) {
    int lane = thread_index() % 4;
    UNROLL for (int mask = 1; mask <= 2; mask *= 2) {
        bool high = lane & mask;
        UNROLL for (int i = 0; i < 4; i++) {
            if (i & mask) continue;
            u32 got = bits_of(across(float_of(high ? x[i] : x[i + mask]), mask));
            if (high)
                x[i] = got;
            else
                x[i + mask] = got;
        }
    }
}

// 32 columns of d, scaled and in bfloat16, to a thread's two rows: at `to`, if `rows` > 0, and 8 below
template <int D>
DEVICE void write_columns(u32* to, const float* d, float scale, int rows) {
    u32 upper[4], lower[4];  // of 8 columns each: the thread's two
    UNROLL for (int i = 0; i < 4; i++) {
        upper[i] = pack(d[4 * i] * scale, d[4 * i + 1] * scale);
        lower[i] = pack(d[4 * i + 2] * scale, d[4 * i + 3] * scale);
    }
    transpose(upper);  // to 16 bytes of one row
    transpose(lower);
    to += thread_index() % 4 * 4;
    if (rows > 0) *(Words4*)to = Words4{upper[0], upper[1], upper[2], upper[3]};
    if (rows > 8) *(Words4*)(to + 8 * (D / 2)) = Words4{lower[0], lower[1], lower[2], lower[3]};
}

// When a block starts, and how many add to a tile before it. It starts after those that it waits for.
//
// Blocks i - 1 and i, started together, are at one tile a step apart, so in ascending order nobody waits
// (at D = 64, where a step is shorter than handing over, i - 2 and i of one chain).
// But the last to start then have most to do. So where rows see all before them the second half of every
// head's blocks goes first, then the second half of what is left, and so on: none waits longer than it
// takes to hand over, for the half before is far ahead, and the last have least to do.
template <int CHAINS>
struct Turn {
    int head, block;
    int earlier;  // blocks of its chain in the halves before, all of which add to all of its tiles
    int within;   // how many blocks of its own half come before it
    Turn() = default;
    DEVICE Turn(int blocks, int heads, bool halves) {
        int at = block_index(), high = blocks, low = halves ? high / 2 : 0;
        while (at >= (high - low) * heads) {
            at -= (high - low) * heads;
            high = low;
            low = high / 2;
        }
        head = at / (high - low);
        within = at % (high - low);
        block = low + within;
        // those from `high` on whose distance is a multiple of CHAINS
        earlier = CHAINS == 1 ? blocks - high : (blocks - high + 1 - (high ^ block) % 2) / 2;
    }
    DEVICE int chain() const { return block % CHAINS; }
    // of the tile n before the diagonal's
    DEVICE int before(int n) const { return earlier + (n < within ? n : within) / CHAINS; }
    // how many of its tiles, from the diagonal's on, it is the first of its chain to add to
    DEVICE int first_at() const { return earlier ? 0 : within >= CHAINS ? CHAINS : block + 1; }
};

// The order of the adds to one warpgroup's rows of a block is kept by a thread of its own, so that
// nobody else waits for what is under way to memory. turns_made counts the adds of each block.
struct Order {
    u32 may_add, added;
    DEVICE Order(u32 barriers, int group) : may_add(barriers + 8 * group), added(may_add + 16) {}
    DEVICE void init() {
        mbarrier_init(may_add, 1);
        mbarrier_init(added, 4);
    }
    template <int CHAINS>
    DEVICE void keep(u32* turns_made, Turn<CHAINS> turn, int blocks, int group, int tiles) {
        for (int n = 0; n <= tiles; n++) {
            u64 tile = (u64)turn.head * blocks + turn.block - n;
            u32* made = turns_made + (tile * 2 + group) * CHAINS + turn.chain();
            u32 before = turn.before(n);
            while (load_acquire(made) != before) {
            }
            mbarrier_arrive(may_add);
            mbarrier_wait(added, n % 2);
            store_release(made, before + 1);  // covers the others' adds, of which `added` has told
        }
    }
    DEVICE void wait(int n) { mbarrier_wait(may_add, n % 2); }
    DEVICE void made() {
        warp_sync();
        if (thread_index() % 32 == 0) mbarrier_arrive(added);
    }
};

template <int D, bool ORDERED, bool PLAIN>
DEVICE void gradients_of_group(typename BackwardShape<D>::Tiles ring, u32 own, u32 barriers, int group,
                               int before, int first_at, Place place, const BackwardArguments& given) {
    int tokens = given.seen.tokens;
    u64 length = given.length;
    float c = given.c;
    int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
    int row = 64 * group + 16 * warp + lane / 4;
    int blocks = ceiling(tokens, BLOCK);
    u32 own_t = own + 64 * group * 128, own_s = own_t + TILE<D, BLOCK>;
    u32 weights = own + BackwardShape<D>::WEIGHTS;
    u32 written = barriers, spent = barriers + 16;  // W of even and odd tiles
    // the last of the tiles before the diagonal's of which all rows see all
    int last_row = place.block * BLOCK + 64 * group + 63;
    int whole = uniform(place.block - ceiling(given.seen.first(last_row), BLOCK));

    float offset_t[2], offset_s[2], ratio[2], g[2];
    UNROLL for (int h = 0; h < 2; h++) {
        int token = place.block * BLOCK + row + 8 * h;
        u64 at = (u64)place.head * tokens + token;
        bool inside = token < tokens;
        const float* stats = given.stats + at;
        offset_t[h] = inside ? stats[0] : -infinity();
        offset_s[h] = inside ? stats[length] : -infinity();
        ratio[h] = inside ? -stats[2 * length] : -1.f;
        g[h] = inside ? times(given.grad[at], stats[3 * length]) : 0.f;
    }
    // lane l writes row l % 8 of matrix l / 8: rows 0-7 and 8-15 of the warp, of 8 columns and of 8 more
    u32 to = weights + (64 * group + 16 * warp + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4);
    Operand own_columns = descriptor(own + TILE<D, BLOCK>, PANEL);
    float rows_part[D / 2], columns_part[D / 2], raw_t[64], raw_s[64];
    u32 w[32];
    Turns<D == 128> turns(group);
    Order order(barriers + 32, group);
    UNROLL for (int i = 0; i < D / 2; i++) rows_part[i] = 0;
    mbarrier_wait(own + BackwardShape<D>::BARRIERS, 0);

    auto column_product = [&](int n) {  // that of tile n, whose W both groups have written
        u32 parity = n / 2 % 2, odd = n % 2;
        mbarrier_wait(written + 8 * odd, parity);
        Operand a = descriptor(weights + 2 * PANEL * odd + PANEL * group, PANEL);
        pin(columns_part);
        wgmma_fence();
        UNROLL for (int k = 0; k < BLOCK / 16; k++)
            wgmma<1, 1>(columns_part, a + (k * 2048 >> 4), own_columns + (k * 2048 >> 4), k > 0);
        wgmma_commit();
    };
    // With two chains a head has a part for each, and behind them one for the rows' parts of a self-relation.
    constexpr bool TWO = CHAINS<D, ORDERED> == 2;
    int head_at = place.head * (!TWO ? 1 : !PLAIN && given.own_gradients ? 2 : 3);
    int part = head_at + (TWO ? place.block % 2 : 0);
    auto add_columns = [&](int n) {
        float* at = given.sums + fragment<D>(part, blocks, place.block - n, group);
        if (ORDERED) order.wait(n);
        if (ORDERED && n < first_at)
            store_fragment<D>(at, columns_part);
        else
            add_fragment<D>(at, columns_part);
        if (ORDERED) order.made();
    };

    for (int n = 0; n <= before; n++) {
        int odd = n % 2;
        u32 tile_t = ring.arrived(), done_t = ring.done();
        ring.next();
        u32 tile_s = ring.arrived(), done_s = ring.done();
        ring.next();
        turns.take();
        pin(raw_t);
        pin(raw_s);
        wgmma_fence();
        scores<D, BLOCK, BLOCK>(raw_t, own_t, tile_t);
        wgmma_commit();
        scores<D, BLOCK, BLOCK>(raw_s, own_s, tile_s);
        wgmma_commit();

        wgmma_wait<1>();
        pin(raw_t);
        turns.pass();
        if (lane == 0) mbarrier_arrive(done_t);
        UNROLL for (int i = 0; i < 64; i++)
            raw_t[i] = exp2_fast(fma_once(raw_t[i], c, offset_t[half(i)]));
        u32 all = 0;  // a third of an instruction each, and none of them is late
        UNROLL for (int i = 0; i < 64; i++) all |= bits_of(raw_t[i]);
        settle(float_of(all), own + BackwardShape<D>::BARRIERS + SPARE);
        wgmma_wait<0>();
        pin(raw_s);
        UNROLL for (int i = 0; i < 64; i++) {
            float e_s = exp2_fast(fma_once(raw_s[i], c, offset_s[half(i)]));
            raw_s[i] = fma_once(raw_t[i], ratio[half(i)], e_s) * g[half(i)];
        }
        if (n == 0 || (!PLAIN && n > whole)) {
            int last = row + n * BLOCK - lane % 4 * 2, begin[2];  // columns of the tile
            UNROLL for (int h = 0; h < 2; h++) {
                int token = place.block * BLOCK + row + 8 * h;
                begin[h] = given.seen.first(token) - token + last + 8 * h;
            }
            UNROLL for (int i = 0; i < 64; i++) {
                bool early = !PLAIN && column(i) < begin[half(i)];
                if (early || column(i) > last + 8 * half(i)) raw_s[i] = 0;
            }
        }
        UNROLL for (int i = 0; i < 32; i++) w[i] = pack(raw_s[2 * i], raw_s[2 * i + 1]);
        if (n >= 2) mbarrier_wait(spent + 8 * odd, (n / 2 - 1) % 2);
        UNROLL for (int k = 0; k < 8; k++)
            store_matrices((to ^ (k % 4 << 5)) + 2 * PANEL * odd + k / 4 * PANEL, w + 4 * k);
        fence_async();
        warp_sync();
        if (lane == 0) mbarrier_arrive(written + 8 * odd);

        turns.take();
        pin(rows_part);
        pin(w);
        wgmma_fence();
        Operand columns = descriptor(tile_s, PANEL);
        UNROLL for (int k = 0; k < BLOCK / 16; k++)
            wgmma_registers<1>(rows_part, w + 4 * k, columns + (k * 2048 >> 4), 1);
        wgmma_commit();
        if (n > 0) {
            column_product(n - 1);
            wgmma_wait<1>();
            if (lane == 0) mbarrier_arrive(done_s);
            wgmma_wait<0>();
            if (group == 0 || n < before) turns.pass();
            pin(columns_part);
            if (lane == 0) mbarrier_arrive(spent + 8 * (1 - odd));
            pin(rows_part);
            add_columns(n - 1);
        } else {
            if (group == 0 || n < before) turns.pass();
            wgmma_wait<0>();
            pin(rows_part);
            if (lane == 0) mbarrier_arrive(done_s);
        }
    }
    column_product(before);
    wgmma_wait<0>();
    pin(columns_part);
    add_columns(before);

    // Where the next block, of the other chain, does not see this one's tile, nobody of its chain does.
    if (TWO) {
        int next = place.block + 1;
        if (next == blocks || given.seen.first(next * BLOCK) / BLOCK == next) {
            UNROLL for (int i = 0; i < D / 2; i++) columns_part[i] = 0;
            u64 other = fragment<D>(head_at + next % 2, blocks, place.block, group);
            store_fragment<D>(given.sums + other, columns_part);
        }
    }

    u64 own_at = fragment<D>(TWO ? head_at + 2 : place.head, blocks, place.block, group);
    int token = place.block * BLOCK + row;
    u32* out = given.own_gradients + ((u64)place.head * tokens + token) * (D / 2);
    if (!PLAIN && given.own_gradients)
        UNROLL for (int i = 0; i < D / 32; i++)
            write_columns<D>(out + 16 * i, rows_part + 16 * i, given.scale, tokens - token);
    else if (ORDERED)
        store_fragment<D>((TWO ? given.sums : given.own_sums) + own_at, rows_part);
    else
        add_fragment<D>(given.sums + own_at, rows_part);
}

template <int D, bool ORDERED, bool PLAIN>
DEVICE void backward(const BackwardArguments& given) {
    using Shape = BackwardShape<D>;
    u32 own = shared_base(), own_full = own + Shape::BARRIERS;
    typename Shape::Tiles ring(own + 2 * TILE<D, BLOCK>, own_full + 8);
    u32 barriers = own_full + 8 + 16 * Shape::SLOTS;
    int blocks = ceiling(given.seen.tokens, BLOCK);
    Place place(blocks, given.all_heads, given.together);
    Turn<CHAINS<D, ORDERED>> turn;
    if (ORDERED) {
        turn = Turn<CHAINS<D, ORDERED>>(blocks, given.all_heads, PLAIN || given.seen.all_before());
        place.head = turn.head;
        place.block = turn.block;
    }
    // tiles before the diagonal's of which a row sees something
    int before = uniform(place.block - given.seen.first(place.block * BLOCK) / BLOCK);
    int group = uniform(thread_index() / 128);
    if (thread_index() == 0) {
        mbarrier_init(own_full, 1);
        ring.init();
        for (int i = 0; i < 4; i++) mbarrier_init(barriers + 8 * i, 4 * GROUPS);
        for (int i = 0; i < 2; i++) Order(barriers + 32, i).init();
        fence_mbarrier_init();
    }
    block_sync();
    if (group == GROUPS) {
        registers_down<24>();
        int warp = thread_index() / 32 - 4 * GROUPS;
        if (thread_index() % 32 != 0) return;
        if (warp == 0) {
            int head = given.from_head + place.head;
            Source queries(given.relations, given.relations.queries, head);
            produce_own<D, BLOCK>(own, own_full, queries, place.block);
            Source keys(given.relations, given.relations.keys, head);
            produce(ring, keys, place.block - before, place.block + 1);
        } else if (ORDERED && warp <= 2) {
            Order(barriers + 32, warp - 1).keep(given.turns_made, turn, blocks, warp - 1, before);
        }
    } else {
        registers_up<240>();
        int first_at = uniform(ORDERED ? turn.first_at() : 0);
        gradients_of_group<D, ORDERED, PLAIN>(ring, own, barriers, group, before, first_at, place, given);
    }
}

// out = scale times the sum of the parts; 32 columns of one warpgroup's 64 rows a block
template <int D>
DEVICE void finish(const FinishArguments& given) {
    constexpr int PIECES = D / 32;
    int groups = 2 * ceiling(given.tokens, BLOCK);
    int lane = thread_index() % 32, warp = thread_index() / 32;
    int piece = block_index() % PIECES, group = block_index() / PIECES % groups;
    int head = block_index() / PIECES / groups, token = group * 64 + 16 * warp + lane / 4;
    const float* from = given.sums + head * given.a_head + (u64)group * (64 * D) + piece * 2048 +
                        thread_index() * 4;
    float d[16] = {};
#pragma unroll 1  // few registers, so many blocks at once
    for (int n = 0; n < given.parts; n++, from += given.apart) {
        UNROLL for (int i = 0; i < 4; i++) {
            Float4 v = *(const Float4*)(from + 512 * i);
            d[4 * i] += v.x, d[4 * i + 1] += v.y, d[4 * i + 2] += v.z, d[4 * i + 3] += v.w;
        }
    }
    u32* to = given.out + ((u64)head * given.tokens + token) * (D / 2) + piece * 16;
    write_columns<D>(to, d, given.scale, given.tokens - token);
}

#define BACKWARD(NAME, D, ORDERED, PLAIN)                               \
    KERNEL(128 * (GROUPS + 1)) NAME(ARGUMENTS(BackwardArguments) given) { \
        backward<D, ORDERED, PLAIN>(given);                             \
    }
BACKWARD(backward_plain_64, 64, false, true)
BACKWARD(backward_plain_128, 128, false, true)
BACKWARD(backward_plain_ordered_64, 64, true, true)
BACKWARD(backward_plain_ordered_128, 128, true, true)
BACKWARD(backward_64, 64, false, false)
BACKWARD(backward_128, 128, false, false)
BACKWARD(backward_ordered_64, 64, true, false)
BACKWARD(backward_ordered_128, 128, true, false)
KERNEL(128) finish_64(ARGUMENTS(FinishArguments) given) { finish<64>(given); }
KERNEL(128) finish_128(ARGUMENTS(FinishArguments) given) { finish<128>(given); }
