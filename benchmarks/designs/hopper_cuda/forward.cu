// Forward: KL of 128 rows a block, an online softmax of both models at once.
//
// Scores stay raw products; c = scale log2(e) enters with the exponent, e = c raw + offset, one
// multiply-add. Offsets are whole numbers, so that rescaling is exact, and a row's is set by the
// diagonal's tile, where the maximum mostly is. After that no maximum is formed: sums tell when
// exponentials have grown, and move the offset. What grows in one tile so far that float32 does not
// hold it leaves a sum that is not finite; then the block does its rows again, with care: a maximum
// before each tile's exponentials.
//
// A warpgroup's own 64 rows lie in registers, as left operands; scores are made of 64 columns at a
// time into two sets of registers, so that one set's exponentials run beside the other's products.
#include <tiles.h>

constexpr float GROWN = 16777216.f;  // more than any number of tokens with exponentials up to 1
constexpr int AGAIN = 5;             // the named barrier at which both warpgroups and the producer meet
constexpr int ALL_BUT_IDLE = 256 + 32;

template <int D>
struct ForwardShape {
    static constexpr int SLOTS = D == 128 ? 5 : 8;
    static constexpr int BARRIERS = (2 + SLOTS) * TILE<D>;
};

DEVICE void hide(float (&raw)[32], int last, float hidden) {
    UNROLL for (int i = 0; i < 32; i++) {
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
    // No exponent above 1/2 with these scores.
    DEVICE void look(const float (&raw_t)[32], const float (&raw_s)[32], bool first) {
        UNROLL for (int h = 0; h < 2; h++) {
            float t = raw_t[2 * h], s = raw_s[2 * h];
            UNROLL for (int i = 0; i < 32; i++) {
                if (half(i) != h) continue;
                t = larger(t, raw_t[i]);
                s = larger(s, raw_s[i]);
            }
            t = -nearest(quad_largest(t) * c);
            s = -nearest(quad_largest(s) * c);
            if (first) {
                offset_t[h] = t;
                offset_s[h] = s;
            } else {
                move(h, smaller(t - offset_t[h], 0.f), smaller(s - offset_s[h], 0.f));
            }
        }
    }
    // `spare`: see settle
    DEVICE void add(const float (&raw_t)[32], const float (&raw_s)[32], u32 spare) {
        float t[2] = {0, 0}, s[2] = {0, 0}, gain[2] = {0, 0};
        UNROLL for (int i = 0; i < 32; i++) {
            int h = half(i);
            float e_t = fma_once(raw_t[i], c, offset_t[h]), e_s = fma_once(raw_s[i], c, offset_s[h]);
            float p = exponential(e_t, i);
            t[h] += p;
            s[h] += exponential(e_s, i);
            gain[h] = fma_once(p, e_t - e_s, gain[h]);
        }
        settle(t[0] + t[1] + s[0] + s[1] + magnitude(gain[0]) + magnitude(gain[1]), spare);
        UNROLL for (int h = 0; h < 2; h++) {
            sum_t[h] += t[h];
            sum_s[h] += s[h];
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

template <int D>
DEVICE void rows_of_group(Ring<D, ForwardShape<D>::SLOTS> ring, u32 own, u32 own_full, int group,
                          Place place, float* kl, float* stats, int tokens, u64 length, float c) {
    int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
    int row = 16 * warp + lane / 4;  // of the group's 64; and the one 8 below
    int last = row - lane % 4 * 2;   // column of the diagonal's tile that the thread's first row sees
    u32 spare = own_full + SPARE;
    float hidden = -1e30f / larger(c, 1e-6f);
    float t0[32], s0[32], t1[32], s1[32];
    u32 own_t[D / 4], own_s[D / 4];
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
    auto multiply = [&](float (&t)[32], float (&s)[32], int part) {
        pin(t);
        pin(s);
        wgmma_fence();
        scores<D>(t, own_t, tile_t + 64 * 128 * part);
        scores<D>(s, own_s, tile_s + 64 * 128 * part);
        wgmma_commit();
    };
    auto wait = [&](float (&t)[32], float (&s)[32]) {
        wgmma_wait<0>();
        pin(t);
        pin(s);
    };
    auto diagonal = [&](float (&t)[32], float (&s)[32], Rows& rows) {
        hide(t, last, hidden);
        hide(s, last, hidden);
        rows.look(t, s, true);
    };

    mbarrier_wait(own_full, 0);
    left_operand<D>(own_t, own, 64 * group + row);
    left_operand<D>(own_s, own + TILE<D>, 64 * group + row);

    Rows rows{c};
    arrive();
    if (group == 1) {  // it sees all of the other group's columns
        multiply(t1, s1, 1);
        wait(t1, s1);
        diagonal(t1, s1, rows);
        multiply(t0, s0, 0);
        rows.add(t1, s1, spare);
        wait(t0, s0);
    } else {
        multiply(t0, s0, 0);
        wait(t0, s0);
        diagonal(t0, s0, rows);
    }
    release();
    for (int n = 1; n <= place.block; n++) {
        arrive();
        multiply(t1, s1, 0);
        rows.add(t0, s0, spare);
        wait(t1, s1);
        rows.shrink();
        multiply(t0, s0, 1);
        rows.add(t1, s1, spare);
        wait(t0, s0);
        rows.shrink();
        release();
    }
    rows.add(t0, s0, spare);

    if (barrier_any(AGAIN, ALL_BUT_IDLE, rows.lost())) {
        rows = Rows{c};
        for (int n = 0; n <= place.block; n++) {
            arrive();
            for (int i = 0; i < 2; i++) {
                int part = n == 0 ? group - i : i;
                if (part < 0) continue;
                multiply(t0, s0, part);
                wait(t0, s0);
                if (n == 0 && i == 0)
                    diagonal(t0, s0, rows);
                else
                    rows.look(t0, s0, false);
                rows.add(t0, s0, spare);
            }
            release();
        }
    }

    UNROLL for (int h = 0; h < 2; h++) {
        float t = quad_sum(rows.sum_t[h]), s = quad_sum(rows.sum_s[h]), gap = quad_sum(rows.cross[h]);
        int token = place.block * BLOCK + 64 * group + row + 8 * h;
        if (lane % 4 || token >= tokens) continue;
        bool counts = token > 0;  // the first row sees one column
        if (!counts) t = s = 1.f;
        float bits = gap / t - log2_of(over(t, s));  // equal sums: exactly 0
        u64 at = (u64)place.head * tokens + token;
        kl[at] = counts ? bits * 0.6931471805599453f : 0.f;
        stats[at] = counts ? rows.offset_t[h] : -infinity();  // in backward exp2(-inf) is 0
        stats[at + length] = counts ? rows.offset_s[h] : -infinity();
        stats[at + 2 * length] = over(s, t);  // equal: exactly 1
        stats[at + 3 * length] = 1.f / s;
    }
}

// kl [heads of all batches, tokens], stats [4, ...] as the Triton forward leaves them
template <int D>
DEVICE void forward(const TensorMap* teacher, const TensorMap* student, float* kl, float* stats,
                    int tokens, int heads, int all_heads, int together, float c) {
    using Shape = ForwardShape<D>;
    u32 own = shared_base(), own_full = own + Shape::BARRIERS;
    Ring<D, Shape::SLOTS> ring(own + 2 * TILE<D>, own_full + 8);
    Place place((tokens + BLOCK - 1) / BLOCK, all_heads, together);
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
        bool leads = thread_index() % 32 == 0;
        if (leads) {
            produce_own<D>(own, own_full, teacher, student, place, heads);
            produce<D, false>(ring, teacher, student, place, heads);
        }
        warp_sync();
        if (barrier_any(AGAIN, ALL_BUT_IDLE, false) && leads)
            produce<D, false>(ring, teacher, student, place, heads);
    } else {
        registers_up<240>();
        rows_of_group<D>(ring, own, own_full, group, place, kl, stats, tokens,
                         (u64)all_heads * tokens, c);
    }
}

#define FORWARD(D)                                                                              \
    KERNEL(THREADS)                                                                             \
    forward_##D(MAP teacher, MAP student, float* kl, float* stats, int tokens, int heads,       \
                int all_heads, int together, float c) {                                         \
        forward<D>(&teacher, &student, kl, stats, tokens, heads, all_heads, together, c);       \
    }
FORWARD(64)
FORWARD(128)
