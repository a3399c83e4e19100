// Forward: KL of 128 rows a block, an online softmax of both models at once.
//
// Scores stay raw products; c = scale log2(e) enters with the exponent, e = c raw + offset, one
// multiply-add. Offsets are whole numbers, so that rescaling is exact, and a row's is set by the
// diagonal's tile, where the maximum mostly is. After that no maximum is formed: sums tell when
// exponentials have grown, and move the offset. What grows in one tile so far that float32 does not
// hold it leaves a sum that is not finite; then the block does its rows again, with care: a maximum
// before each tile's exponentials.
//
// head_dim 64: a warpgroup's own 64 rows lie in registers, as left operands; scores are made of 64
// columns at a time into two sets of registers, so that one set's exponentials run beside the other's
// products. head_dim 128: there is room for one set, of 128 columns; the two warpgroups take turns.
#include <tiles.h>

constexpr float GROWN = 16777216.f;  // more than any number of tokens with exponentials up to 1
constexpr int AGAIN = 5;             // the named barrier at which both warpgroups and the producer meet
constexpr int ALL_BUT_IDLE = 256 + 32;

template <int D>
struct ForwardShape {
    static constexpr int SLOTS = D == 128 ? 5 : 8;
    static constexpr int BARRIERS = (2 + SLOTS) * TILE<D>;
};

template <int D>
constexpr bool WIDE = D == 128;

template <int COUNT>
DEVICE void hide(float (&raw)[COUNT], int last, float hidden) {
    UNROLL for (int i = 0; i < COUNT; i++) {
        if (column(i) > last + 8 * half(i)) raw[i] = hidden;
    }
}

DEVICE float quad_sum(float x) {
    x += across(x, 1);
    return x + across(x, 2);
}
DEVICE float quad_largest(float x) {
    x = larger(x, across(x, 1));
    return larger(x, across(x, 2));
}

// Two rows of a thread, of which it sees a quarter of the columns: sums of 2^e_t, of 2^e_s and of
// 2^e_t (e_t - e_s).
struct Rows {
    float c;
    float offset_t[2] = {0, 0}, offset_s[2] = {0, 0};
    float sum_t[2] = {0, 0}, sum_s[2] = {0, 0}, cross[2] = {0, 0};

    DEVICE void move(int h, float delta_t, float delta_s) {
        float shrink = power_of_two(delta_t);
        cross[h] = (cross[h] + sum_t[h] * (delta_t - delta_s)) * shrink;
        sum_t[h] *= shrink;
        sum_s[h] *= power_of_two(delta_s);
        offset_t[h] += delta_t;
        offset_s[h] += delta_s;
    }
    // The offset that leaves no exponent above 1/2 with these scores.
    template <int COUNT>
    DEVICE float level(const float (&raw)[COUNT], int h) {
        float most = raw[2 * h];
        UNROLL for (int i = 0; i < COUNT; i++) {
            if (half(i) == h) most = larger(most, raw[i]);
        }
        return -nearest(quad_largest(most) * c);
    }
    template <int COUNT>
    DEVICE void look(const float (&raw_t)[COUNT], const float (&raw_s)[COUNT]) {
        UNROLL for (int h = 0; h < 2; h++) {
            move(h, smaller(level(raw_t, h) - offset_t[h], 0.f),
                 smaller(level(raw_s, h) - offset_s[h], 0.f));
        }
    }
    // Scores become exponents, p their exponentials. `spare`: see settle
    template <int COUNT>
    DEVICE void add_teacher(float (&raw)[COUNT], float (&p)[COUNT], u32 spare) {
        float sum[2] = {0, 0};
        UNROLL for (int i = 0; i < COUNT; i++) {
            raw[i] = fma_once(raw[i], c, offset_t[half(i)]);
            p[i] = exp2_fast(raw[i]);
            sum[half(i)] += p[i];
        }
        settle(sum[0] + sum[1], spare);
        UNROLL for (int h = 0; h < 2; h++) sum_t[h] += sum[h];
    }
    template <int COUNT>
    DEVICE void add_student(const float (&exponents_t)[COUNT], const float (&raw)[COUNT],
                            const float (&p)[COUNT], u32 spare) {
        float sum[2] = {0, 0}, gain[2] = {0, 0};
        UNROLL for (int i = 0; i < COUNT; i++) {
            float e = fma_once(raw[i], c, offset_s[half(i)]);
            sum[half(i)] += exp2_fast(e);
            gain[half(i)] = fma_once(p[i], exponents_t[i] - e, gain[half(i)]);
        }
        settle(sum[0] + sum[1] + magnitude(gain[0]) + magnitude(gain[1]), spare);
        UNROLL for (int h = 0; h < 2; h++) {
            sum_s[h] += sum[h];
            cross[h] += gain[h];
        }
    }
    // Small sums again, where they have grown: about 1.
    DEVICE void shrink() {
        float most = larger(larger(sum_t[0], sum_t[1]), larger(sum_s[0], sum_s[1]));
        if (!warp_any(most > GROWN)) return;
        UNROLL for (int h = 0; h < 2; h++) {
            float t = quad_largest(sum_t[h]), s = quad_largest(sum_s[h]);
            move(h, t > GROWN ? -exponent(t) : 0.f, s > GROWN ? -exponent(s) : 0.f);
        }
    }
    DEVICE bool lost() {
        bool kept = true;
        UNROLL for (int h = 0; h < 2; h++) {
            kept = kept && sum_t[h] < infinity() && sum_s[h] < infinity() &&
                   magnitude(cross[h]) < infinity();
        }
        return !kept;
    }
};

// 64 rows of a tile as left operand.
template <int D>
struct Left {  // from shared memory
    u32 at;
    DEVICE Left(u32 tile, int group, int row) : at(tile + 64 * 128 * group) {}
    DEVICE void scores(float (&d)[64], u32 other) const { ::scores<D>(d, at, other); }
};
template <>
struct Left<64> {  // from registers
    u32 a[16];
    DEVICE Left(u32 tile, int group, int row) { left_operand<64>(a, tile, 64 * group + row); }
    DEVICE void scores(float (&d)[32], u32 other) const { ::scores<64>(d, a, other); }
};

template <int D>
DEVICE void rows_of_group(Ring<D, ForwardShape<D>::SLOTS> ring, u32 own, u32 own_full, int group,
                          Place place, const ForwardArguments& given) {
    float c = given.c;
    int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
    int row = 16 * warp + lane / 4;  // of the group's 64; and the one 8 below
    // the column, of those multiplied at once, at which the diagonal meets the thread's first row
    int last = row - lane % 4 * 2 + (WIDE<D> ? 64 * group : 0);
    u32 spare = own_full + SPARE;
    float hidden = -1e30f / larger(c, 1e-6f);
    constexpr int COUNT = WIDE<D> ? 64 : 32, PARTS = WIDE<D> ? 1 : 2;  // of a tile's columns
    float t0[COUNT], s0[COUNT], p[COUNT];
    u32 tile_t, tile_s, done_t, done_s;
    auto arrive = [&] {
        tile_t = ring.arrived(), done_t = ring.done();
        ring.next();
        tile_s = ring.arrived(), done_s = ring.done();
        ring.next();
    };
    auto release = [&] {
        if (lane == 0) {
            mbarrier_arrive(done_t);
            mbarrier_arrive(done_s);
        }
    };
    mbarrier_wait(own_full, 0);
    Left<D> own_t(own, group, row), own_s(own + TILE<D>, group, row);
    auto multiply = [&](float (&t)[COUNT], float (&s)[COUNT], int part) {
        pin(t);
        pin(s);
        wgmma_fence();
        own_t.scores(t, tile_t + 64 * 128 * part);
        wgmma_commit();
        own_s.scores(s, tile_s + 64 * 128 * part);
        wgmma_commit();
    };
    auto wait = [&](float (&t)[COUNT], float (&s)[COUNT]) {
        wgmma_wait<0>();
        pin(t);
        pin(s);
    };
    Rows rows{c};
    auto first = [&](float (&raw)[COUNT], float (&offset)[2]) {  // scores of the diagonal
        hide(raw, last, hidden);
        UNROLL for (int h = 0; h < 2; h++) offset[h] = rows.level(raw, h);
    };

    if constexpr (WIDE<D>) {
        Turns<true> turns(group);
        for (int n = 0; n <= place.block; n++) {
            arrive();
            turns.take();
            multiply(t0, s0, 0);
            if (group == 0 || n < place.block) turns.pass();
            wgmma_wait<1>();
            pin(t0);
            if (n == 0) first(t0, rows.offset_t);
            rows.add_teacher(t0, p, spare);
            wgmma_wait<0>();
            pin(s0);
            release();
            if (n == 0) first(s0, rows.offset_s);
            rows.add_student(t0, s0, p, spare);
            rows.shrink();
        }
    } else {
        float t1[COUNT], s1[COUNT];
        auto add = [&](float (&t)[COUNT], float (&s)[COUNT]) {
            rows.add_teacher(t, p, spare);
            rows.add_student(t, s, p, spare);
        };
        arrive();
        if (group == 1) {  // it sees all of the other group's columns
            multiply(t1, s1, 1);
            wait(t1, s1);
            first(t1, rows.offset_t);
            first(s1, rows.offset_s);
            multiply(t0, s0, 0);
            add(t1, s1);
            wait(t0, s0);
        } else {
            multiply(t0, s0, 0);
            wait(t0, s0);
            first(t0, rows.offset_t);
            first(s0, rows.offset_s);
        }
        release();
        for (int n = 1; n <= place.block; n++) {
            arrive();
            multiply(t1, s1, 0);
            add(t0, s0);
            wait(t1, s1);
            rows.shrink();
            multiply(t0, s0, 1);
            add(t1, s1);
            wait(t0, s0);
            rows.shrink();
            release();
        }
        add(t0, s0);
    }

    if (barrier_any(AGAIN, ALL_BUT_IDLE, rows.lost())) {
        rows = Rows{c};
        for (int n = 0; n <= place.block; n++) {
            arrive();
            for (int i = 0; i < PARTS; i++) {
                int part = n == 0 && !WIDE<D> ? group - i : i;
                if (part < 0) continue;
                multiply(t0, s0, part);
                wait(t0, s0);
                if (n == 0 && i == 0) {
                    first(t0, rows.offset_t);
                    first(s0, rows.offset_s);
                } else {
                    rows.look(t0, s0);
                }
                rows.add_teacher(t0, p, spare);
                rows.add_student(t0, s0, p, spare);
            }
            release();
        }
    }

    UNROLL for (int h = 0; h < 2; h++) {
        float t = quad_sum(rows.sum_t[h]), s = quad_sum(rows.sum_s[h]), gap = quad_sum(rows.cross[h]);
        int token = place.block * BLOCK + 64 * group + row + 8 * h;
        if (lane % 4 || token >= given.tokens) continue;
        bool counts = token > 0;  // the first row sees one column
        if (!counts) t = s = 1.f;
        float bits = gap / t - log2_of(over(t, s));  // equal sums: exactly 0
        u64 at = (u64)place.head * given.tokens + token;
        float* stats = given.stats + at;
        given.kl[at] = counts ? bits * 0.6931471805599453f : 0.f;
        stats[0] = counts ? rows.offset_t[h] : -infinity();  // in backward exp2(-inf) is 0
        stats[given.length] = counts ? rows.offset_s[h] : -infinity();
        stats[2 * given.length] = over(s, t);  // equal: exactly 1
        stats[3 * given.length] = 1.f / s;
    }
}

template <int D>
DEVICE void forward(const ForwardArguments& given) {
    using Shape = ForwardShape<D>;
    u32 own = shared_base(), own_full = own + Shape::BARRIERS;
    Ring<D, Shape::SLOTS> ring(own + 2 * TILE<D>, own_full + 8);
    Place place((given.tokens + BLOCK - 1) / BLOCK, given.all_heads, given.together);
    int group = uniform(thread_index() / 128);
    if (thread_index() == 0) {
        mbarrier_init(own_full, 1);
        ring.init();
        fence_mbarrier_init();
    }
    block_sync();
    if (group == PRODUCER) {
        registers_down<24>();
        if (thread_index() / 32 != 4 * PRODUCER) return;
        Source source(given.relations, place.head);
        bool leads = thread_index() % 32 == 0;
        if (leads) {
            produce_own<D>(own, own_full, source, place.block);
            produce(ring, source, place.block);
        }
        warp_sync();
        if (barrier_any(AGAIN, ALL_BUT_IDLE, false) && leads) produce(ring, source, place.block);
    } else {
        registers_up<240>();
        rows_of_group<D>(ring, own, own_full, group, place, given);
    }
}

KERNEL(THREADS) forward_64(ARGUMENTS(ForwardArguments) given) { forward<64>(given); }
KERNEL(THREADS) forward_128(ARGUMENTS(ForwardArguments) given) { forward<128>(given); }
