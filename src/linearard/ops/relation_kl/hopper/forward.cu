// Forward: KL of 192 rows a block, 64 a warpgroup, an online softmax of both models at once.
//
// Scores stay raw products; c = scale log2(e) enters with the exponent, e = c raw + offset, one
// multiply-add. Offsets are whole numbers, so that rescaling is exact, and a row's is set by the
// diagonal's tile, where the maximum mostly is. After that no maximum is formed: sums tell when
// exponentials have grown, and move the offset. What grows in one tile so far that float32 does not
// hold it leaves a sum that is not finite; then the block does its rows again, with care: a maximum
// before each tile's exponentials.
//
// Exponentials, not products, take most of a warpgroup's time. So three of them share the tensor
// cores, and in each, one model's exponentials run beside the other's products.
#include <tiles.h>

constexpr float GROWN = 16777216.f;  // more than any number of tokens with exponentials up to 1
constexpr int AGAIN = 1;             // the named barrier at which all groups and the producer meet
constexpr int FORWARD_GROUPS = 3, FORWARD_ROWS = FORWARD_GROUPS * TOKENS;  // of a block
constexpr int ALL_BUT_IDLE = FORWARD_GROUPS * 128 + 32;

template <int D>
struct ForwardShape {
    static constexpr int SLOTS = 8;                           // of tiles
    static constexpr int OTHERS = 2 * TILE<D, FORWARD_ROWS>;  // behind the block's own rows
    static constexpr int BARRIERS = OTHERS + SLOTS * TILE<D, TOKENS>;
    static constexpr int ALL_BARRIERS = 8 * (1 + 2 * SLOTS);
    static_assert(ALL_BARRIERS <= SPARE);
    using Tiles = Ring<D, TOKENS, SLOTS, 4 * FORWARD_GROUPS>;
};

DEVICE float quad_sum(float x) {
    x += across(x, 1);
    return x + across(x, 2);
}
DEVICE float quad_largest(float x) {
    x = larger(x, across(x, 1));
    return larger(x, across(x, 2));
}

// Two rows of a thread, of which it sees a quarter of the columns: sums of 2^e_t, of 2^e_s, of
// 2^e_t e_t and of 2^e_t e_s. The last two are kept apart so that the teacher's scores are not needed
// any more when the student's come; of equal models they are equal to the bit.
struct Rows {
    float c;
    float offset_t[2] = {0, 0}, offset_s[2] = {0, 0};
    float sum_t[2] = {0, 0}, sum_s[2] = {0, 0}, own[2] = {0, 0}, cross[2] = {0, 0};

    DEVICE void move(int h, float delta_t, float delta_s) {
        float shrink = power_of_two(delta_t);
        own[h] = fma_once(sum_t[h], delta_t, own[h]) * shrink;
        cross[h] = fma_once(sum_t[h], delta_s, cross[h]) * shrink;
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
    // p: exponentials of the teacher's exponents. `spare`: see settle
    template <int COUNT>
    DEVICE void add_teacher(const float (&raw)[COUNT], float (&p)[COUNT], u32 spare) {
        float sum[2] = {0, 0}, gain[2] = {0, 0};
        UNROLL for (int i = 0; i < COUNT; i++) {
            float e = fma_once(raw[i], c, offset_t[half(i)]);
            p[i] = exp2_fast(e);
            sum[half(i)] += p[i];
            gain[half(i)] = fma_once(p[i], e, gain[half(i)]);
        }
        settle(sum[0] + sum[1] + magnitude(gain[0]) + magnitude(gain[1]), spare);
        UNROLL for (int h = 0; h < 2; h++) {
            sum_t[h] += sum[h];
            own[h] += gain[h];
        }
    }
    template <int COUNT>
    DEVICE void add_student(const float (&raw)[COUNT], const float (&p)[COUNT], u32 spare) {
        float sum[2] = {0, 0}, gain[2] = {0, 0};
        UNROLL for (int i = 0; i < COUNT; i++) {
            float e = fma_once(raw[i], c, offset_s[half(i)]);
            sum[half(i)] += exp2_fast(e);
            gain[half(i)] = fma_once(p[i], e, gain[half(i)]);
        }
        settle(sum[0] + sum[1] + magnitude(gain[0]) + magnitude(gain[1]), spare);
        UNROLL for (int h = 0; h < 2; h++) {
            sum_s[h] += sum[h];
            cross[h] += gain[h];
        }
    }
    // Small sums again, where they have grown: at most 4, by a power of two that is a normal number.
    DEVICE void shrink() {
        float most = larger(larger(sum_t[0], sum_t[1]), larger(sum_s[0], sum_s[1]));
        if (!warp_any(most > GROWN)) return;
        UNROLL for (int h = 0; h < 2; h++) {
            float t = quad_largest(sum_t[h]), s = quad_largest(sum_s[h]);
            move(h, t > GROWN ? larger(-exponent(t), -126.f) : 0.f,
                 s > GROWN ? larger(-exponent(s), -126.f) : 0.f);
        }
    }
    DEVICE bool lost() {
        bool kept = true;
        UNROLL for (int h = 0; h < 2; h++) {
            kept = kept && sum_t[h] < infinity() && sum_s[h] < infinity() &&
                   magnitude(own[h]) + magnitude(cross[h]) < infinity();
        }
        return !kept;
    }
};

template <int D>
DEVICE void rows_of_group(typename ForwardShape<D>::Tiles ring, u32 own, u32 own_full, int group,
                          int lowest, Place place, const ForwardArguments& given) {
    int tokens = given.seen.tokens;
    float c = given.c;
    int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
    int row = 16 * warp + lane / 4;  // of the group's 64; and the one 8 below
    u32 spare = own_full + SPARE;
    float hidden = -1e30f / larger(c, 1e-6f);
    float t[32], s[32], p[32];
    u32 done_t, done_s;
    u32 own_t = own + panel(TOKENS) * group, own_s = own_t + TILE<D, FORWARD_ROWS>;
    Rows rows{c};
    auto multiply = [&](float (&raw)[32], u32 rows_at, u32& done) {
        u32 tile = ring.arrived();
        done = ring.done();
        ring.next();
        pin(raw);
        wgmma_fence();
        scores<D, FORWARD_ROWS, TOKENS>(raw, rows_at, tile);
        wgmma_commit();
    };
    auto free = [&](u32 done) {
        if (lane == 0) mbarrier_arrive(done);
    };
    auto scored = [&](float (&raw)[32], u32 done) {  // its product has been waited for
        pin(raw);
        free(done);
    };
    auto skip = [&](int tiles) {  // that groups with later or earlier rows see
        for (int n = 2 * tiles; n > 0; n--) {
            ring.arrived();
            warp_sync();  // lane 0 speaks for all
            free(ring.done());
            ring.next();
        }
    };
    int diagonal = FORWARD_GROUPS * place.block + group;  // its tile
    int before = uniform(diagonal - given.seen.first(diagonal * TOKENS) / TOKENS);  // tiles seen
    // the last of them of which all rows see all
    int whole = uniform(diagonal - ceiling(given.seen.first(diagonal * TOKENS + TOKENS - 1), TOKENS));
    // Scores of the n-th tile before the diagonal's: hides what rows do not see; begins at n = 0.
    auto limit = [&](float (&raw)[32], int n, float (&offset)[2]) {
        if (n > 0 && n <= whole) return;
        int tile = (diagonal - n) * TOKENS + lane % 4 * 2, begin[2], last[2];
        UNROLL for (int h = 0; h < 2; h++) {
            last[h] = diagonal * TOKENS + row + 8 * h;
            begin[h] = given.seen.first(last[h]) - tile;
            last[h] -= tile;
        }
        UNROLL for (int i = 0; i < 32; i++) {
            if (column(i) < begin[half(i)] || column(i) > last[half(i)]) raw[i] = hidden;
        }
        if (n > 0) return;
        UNROLL for (int h = 0; h < 2; h++) offset[h] = rows.level(raw, h);
    };

    mbarrier_wait(own_full, 0);
    skip(FORWARD_GROUPS - 1 - group);
    multiply(t, own_t, done_t);
    wgmma_wait<0>();
    scored(t, done_t);
    limit(t, 0, rows.offset_t);
    for (int n = 0; n < before; n++) {
        multiply(s, own_s, done_s);
        rows.add_teacher(t, p, spare);
        multiply(t, own_t, done_t);
        wgmma_wait<1>();
        scored(s, done_s);
        limit(s, n, rows.offset_s);
        rows.add_student(s, p, spare);
        wgmma_wait<0>();
        scored(t, done_t);
        limit(t, n + 1, rows.offset_t);
        rows.shrink();
    }
    multiply(s, own_s, done_s);
    rows.add_teacher(t, p, spare);
    wgmma_wait<0>();
    scored(s, done_s);
    limit(s, before, rows.offset_s);
    rows.add_student(s, p, spare);
    rows.shrink();  // a row's sum is that of four threads
    skip(diagonal - before - lowest);

    if (barrier_any(AGAIN, ALL_BUT_IDLE, rows.lost())) {
        rows = Rows{c};
        skip(FORWARD_GROUPS - 1 - group);
        for (int n = 0; n <= before; n++) {
            multiply(t, own_t, done_t);
            multiply(s, own_s, done_s);
            wgmma_wait<0>();
            pin(t);
            pin(s);
            free(done_t);
            free(done_s);
            limit(t, n, rows.offset_t);
            limit(s, n, rows.offset_s);
            if (n > 0) rows.look(t, s);
            rows.add_teacher(t, p, spare);
            rows.add_student(s, p, spare);
        }
        skip(diagonal - before - lowest);
    }

    UNROLL for (int h = 0; h < 2; h++) {
        float all_t = quad_sum(rows.sum_t[h]), all_s = quad_sum(rows.sum_s[h]);
        float gap = quad_sum(rows.own[h]) - quad_sum(rows.cross[h]);
        int token = place.block * FORWARD_ROWS + TOKENS * group + row + 8 * h;
        if (lane % 4 || token >= tokens) continue;
        bool counts = token > given.seen.first(token);  // a row that sees one column does not
        if (!counts) all_t = all_s = 1.f;
        float bits = gap / all_t - log2_of(over(all_t, all_s));  // equal sums: exactly 0
        u64 at = (u64)place.head * tokens + token;
        float* stats = given.stats + at;
        given.kl[at] = counts ? bits * 0.6931471805599453f : 0.f;
        stats[0] = counts ? rows.offset_t[h] : -infinity();  // in backward exp2(-inf) is 0
        stats[given.length] = counts ? rows.offset_s[h] : -infinity();
        stats[2 * given.length] = over(all_s, all_t);  // equal: exactly 1
        stats[3 * given.length] = 1.f / all_s;
    }
}

template <int D>
DEVICE void forward(const ForwardArguments& given) {
    using Shape = ForwardShape<D>;
    u32 own = shared_base(), own_full = own + Shape::BARRIERS;
    typename Shape::Tiles ring(own + Shape::OTHERS, own_full + 8);
    Place place(ceiling(given.seen.tokens, FORWARD_ROWS), given.all_heads, given.together);
    int lowest = given.seen.first(place.block * FORWARD_ROWS) / TOKENS;  // tile that a row sees
    int group = uniform(thread_index() / 128);
    if (thread_index() == 0) {
        mbarrier_init(own_full, 1);
        ring.init();
        fence_mbarrier_init();
    }
    block_sync();
    if (group == FORWARD_GROUPS) {
        registers_down<24>();
        if (thread_index() / 32 != 4 * FORWARD_GROUPS) return;
        Source keys(given.relations, given.relations.keys, place.head);
        bool leads = thread_index() % 32 == 0;
        int end = FORWARD_GROUPS * (place.block + 1);
        if (leads) {
            Source queries(given.relations, given.relations.queries, place.head);
            produce_own<D, FORWARD_ROWS>(own, own_full, queries, place.block);
            produce(ring, keys, lowest, end);
        }
        warp_sync();
        if (barrier_any(AGAIN, ALL_BUT_IDLE, false) && leads)
            produce(ring, keys, lowest, end);
    } else {
        registers_up<160>();
        rows_of_group<D>(ring, own, own_full, group, lowest, place, given);
    }
}

KERNEL(128 * (FORWARD_GROUPS + 1)) forward_64(ARGUMENTS(ForwardArguments) given) { forward<64>(given); }
KERNEL(128 * (FORWARD_GROUPS + 1)) forward_128(ARGUMENTS(ForwardArguments) given) { forward<128>(given); }
