// Forward: KL of 128 rows a block, an online softmax of both models at once.
//
// Scores stay raw products; c = scale log2(e) enters with the exponent, e = c raw + offset, one
// multiply-add. Unlike the Triton kernel's, offsets are whole numbers, and a row keeps its offset
// until its exponentials grow large: the sum that is formed anyway tells. So the maximum is looked
// for in the first tile (the diagonal one, where it mostly is) and almost never again, and what
// rescaling there is, is exact. Where a sum has grown large, the tile is done once more: its scores,
// whose registers the exponents have taken, are multiplied again, by a whole warpgroup or not at all.
#include <tiles.h>

constexpr float LARGE = 64.f;  // of 32 exponentials; then none was above 2^6, and rounding is small

// Offsets for these scores: no exponent above 1/2 with them. What was summed is moved along.
DEVICE void look(const float (&raw)[64], float c, bool first, float (&offset)[2], float (&delta)[2]) {
    UNROLL for (int h = 0; h < 2; h++) {
        float most = raw[2 * h];
        UNROLL for (int i = 0; i < 64; i++) {
            if (half(i) == h) most = larger(most, raw[i]);
        }
        most = larger(most, across(most, 1));
        most = larger(most, across(most, 2));
        float next = -nearest(most * c);
        if (!first) next = smaller(next, offset[h]);
        delta[h] = first ? 0.f : next - offset[h];
        offset[h] = next;
    }
}

DEVICE void hide(float (&raw)[64], int last, float hidden) {
    UNROLL for (int i = 0; i < 64; i++) {
        if (column(i) > last + 8 * half(i)) raw[i] = hidden;
    }
}

DEVICE float row_sum(float x) {
    x += across(x, 1);
    return x + across(x, 2);
}

template <int D>
struct ForwardShape {
    static constexpr int SLOTS = D == 128 ? 5 : 8;
    static constexpr int BARRIERS = (2 + SLOTS) * TILE<D>;
};

template <int D>
DEVICE void rows_of_group(Ring<D, ForwardShape<D>::SLOTS> ring, u32 own, u32 own_full, int group,
                          Place place, float* kl, float* stats, int tokens, u64 length, float c) {
    int lane = thread_index() % 32, warp = thread_index() / 32 % 4;
    int row = 64 * group + 16 * warp + lane / 4;  // of the block; and the one 8 below
    u32 own_t = own + 64 * group * 128, own_s = own_t + TILE<D>;
    float hidden = -1e30f / larger(c, 1e-6f);
    float offset_t[2] = {0, 0}, offset_s[2] = {0, 0};
    float sum_t[2] = {0, 0}, sum_s[2] = {0, 0}, cross[2] = {0, 0};
    float raw_t[64], raw_s[64], p[64];
    float added_t[2], added_s[2], gain[2];
    auto exponentials_t = [&] {  // scores become exponents: registers are short
        added_t[0] = added_t[1] = 0;
        UNROLL for (int i = 0; i < 64; i++) {
            raw_t[i] = fma_once(raw_t[i], c, offset_t[half(i)]);
            p[i] = exponential(raw_t[i], i);
            added_t[half(i)] += p[i];
        }
    };
    auto exponentials_s = [&] {
        added_s[0] = added_s[1] = gain[0] = gain[1] = 0;
        UNROLL for (int i = 0; i < 64; i++) {
            raw_s[i] = fma_once(raw_s[i], c, offset_s[half(i)]);
            added_s[half(i)] += exponential(raw_s[i], i);
            gain[half(i)] = fma_once(p[i], raw_t[i] - raw_s[i], gain[half(i)]);
        }
    };
    Turns turns(group);
    mbarrier_wait(own_full, 0);

    for (int n = 0; n <= place.block; n++) {
        bool first = n == 0;
        u32 tile_t = ring.arrived(), done_t = ring.done();
        ring.next();
        u32 tile_s = ring.arrived(), done_s = ring.done();
        ring.next();
        auto multiply = [&] {
            pin(raw_t);
            pin(raw_s);
            wgmma_fence();
            scores<D>(raw_t, own_t, tile_t);
            wgmma_commit();
            scores<D>(raw_s, own_s, tile_s);
            wgmma_commit();
        };
        turns.take();
        multiply();
        if (group == 0 || n < place.block) turns.pass();

        wgmma_wait<1>();
        pin(raw_t);
        float delta_t[2], delta_s[2];
        if (first) {
            hide(raw_t, row - lane % 4 * 2, hidden);
            look(raw_t, c, true, offset_t, delta_t);
        }
        exponentials_t();
        if (!WITHOUT_SETTLE) settle(added_t[0] + added_t[1], own_full + SPARE);
        wgmma_wait<0>();
        pin(raw_s);
        if (first) {
            hide(raw_s, row - lane % 4 * 2, hidden);
            look(raw_s, c, true, offset_s, delta_s);
        }
        exponentials_s();
        bool small = added_t[0] <= LARGE && added_t[1] <= LARGE && added_s[0] <= LARGE &&
                     added_s[1] <= LARGE;  // not so what is not a number
        if (barrier_any(3 + group, 128, !first && !small)) {
            multiply();
            wgmma_wait<0>();
            pin(raw_t);
            pin(raw_s);
            look(raw_t, c, false, offset_t, delta_t);
            look(raw_s, c, false, offset_s, delta_s);
            UNROLL for (int h = 0; h < 2; h++) {
                float shrink = power_of_two(delta_t[h]);
                cross[h] = (cross[h] + sum_t[h] * (delta_t[h] - delta_s[h])) * shrink;
                sum_t[h] *= shrink;
                sum_s[h] *= power_of_two(delta_s[h]);
            }
            exponentials_t();
            exponentials_s();
        }
        if (lane == 0) {
            mbarrier_arrive(done_t);
            mbarrier_arrive(done_s);
        }
        UNROLL for (int h = 0; h < 2; h++) {
            sum_t[h] += added_t[h];
            sum_s[h] += added_s[h];
            cross[h] += gain[h];
        }
    }

    UNROLL for (int h = 0; h < 2; h++) {
        float t = row_sum(sum_t[h]), s = row_sum(sum_s[h]), gap = row_sum(cross[h]);
        int token = place.block * BLOCK + row + 8 * h;
        if (lane % 4 || token >= tokens) continue;
        bool counts = token > 0;  // the first row sees one column
        if (!counts) t = s = 1.f;
        float bits = gap / t - log2_of(over(t, s));  // equal sums: exactly 0
        u64 at = (u64)place.head * tokens + token;
        kl[at] = counts ? bits * 0.6931471805599453f : 0.f;
        stats[at] = counts ? offset_t[h] : -infinity();  // in backward exp2(-inf) is 0
        stats[at + length] = counts ? offset_s[h] : -infinity();
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
        if (thread_index() == PRODUCER * 128)
            produce(ring, own, own_full, teacher, student, place, heads);
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
