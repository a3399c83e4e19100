// A Hopper multiprocessor for the kernels' sources, on one CPU thread.
//
// A block's threads are fibers; some blocks run at once, started in the order of their index. The
// seed decides who runs next, when a copy lands, and when a product reads its operands. Errors:
//
//   a product reads shared memory that no copy or store has filled, that a thread has stored to
//   without fence.proxy.async, or that changes before the product is waited for;
//   an accumulator or a left operand in registers is touched while a product is in flight;
//   a copy lands outside shared memory or on a tile that a product still reads;
//   a barrier's count goes wrong; nobody can go on.
#include <hopper_ptx.h>
#include <ucontext.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr u32 BASE = 1024, LIMIT = 232448;  // of shared memory, as the largest block has it
constexpr u32 NOBODY = ~0u, UNFILLED = ~1u;  // of a 16-byte piece: who stored to it, unfenced

std::mt19937 dice;
std::string failure;
void fail(const std::string& what) {
    if (failure.empty()) failure = what;
}
bool chance(unsigned one_in) { return dice() % one_in == 0; }

struct Product {
    int columns = 0;
    bool add = false, a_rows = false, b_rows = false, in_registers = false;
    u64 a = 0, b = 0;
    float* d[128] = {};
    const u32* a_at[128] = {};
    u32 a_held[128][4] = {};
    int arrived = 0;
    std::vector<float> left, right;  // as read when it began
    std::vector<float> before[128];  // accumulators when issued, where no product was in flight
    bool read = false, done = false;
};

struct Mbarrier {
    u32 count = 0, pending = 0, phase = 0;
    int64_t bytes = 0;
    bool made = false;
};

struct Named {
    int arrived = 0;
    u32 generation = 0;
    bool votes = false, vote = false;
};

struct Group {  // a warpgroup's products, in order; which have been committed, by each thread
    std::vector<std::unique_ptr<Product>> products;
    size_t next = 0;  // the first not yet done
};

struct Warp {
    int arrived = 0;
    u32 generation = 0;
    float in[32], out[32];
    u32 pieces[32][4];
};

struct Block;
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int index = 0;
    bool over = false;
    Block* block = nullptr;
    std::function<bool()> ready;  // what it waits for
    size_t issued = 0;            // products
    std::vector<size_t> groups;   // products issued when each commit was made
    bool fenced = false;
};

struct Copy {
    std::function<void()> land;
};

struct Block {
    int index;
    std::vector<unsigned char> memory = std::vector<unsigned char>(LIMIT, 0xff);
    std::vector<u32> stored = std::vector<u32>(LIMIT / 16, UNFILLED);
    std::vector<int> readers = std::vector<int>(LIMIT / 16, 0);
    std::map<u32, Mbarrier> mbarriers;
    Named named[17];
    Group groups[4];
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::list<Copy> copies;
    int left, asleep = 0;
};

ucontext_t scheduler;
Fiber* now = nullptr;
std::function<void()> entry;
int block_total;

void yield() {
    Fiber* me = now;
    swapcontext(&me->context, &scheduler);
}
void wait_until(std::function<bool()> ready) {
    while (!ready()) {
        now->ready = ready;
        yield();
    }
    now->ready = nullptr;
}
void start() {
    entry();
    now->over = true;
    now->block->left--;
    yield();
}

float value(u16 bits) {
    u32 wide = (u32)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

// Byte address of an operand's element: `line` along M or N, `k` of 16. The matrix of 128-byte rows
// is laid out without swizzle; then bits 4-6 of the address are changed by bits 7-9.
u32 address(u64 descriptor, bool rows, int line, int k) {
    u32 at = (descriptor & 0x3fff) << 4;
    u32 leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (rows)  // M or N contiguous: panels of 64, `leading` apart; 8 of k, `stride` apart
        at += line / 64 * leading + line % 64 * 2 + k / 8 * stride + k % 8 * 128;
    else  // k contiguous: 8 lines of 128 bytes, then `stride`
        at += line / 8 * stride + line % 8 * 128 + k * 2;
    return at ^ (at >> 7 & 7) << 4;
}

void touch(Block& b, Product& p, bool rows, u64 descriptor, int lines, int by) {
    for (int line = 0; line < lines; line++)
        for (int k = 0; k < 16; k++) b.readers[address(descriptor, rows, line, k) / 16] += by;
}

std::vector<float> operand(Block& b, bool rows, u64 descriptor, int lines) {
    if ((descriptor >> 62) != 1) fail("descriptor without the 128-byte swizzle");
    if (descriptor >> 49 & 7) fail("descriptor with a base offset");
    std::vector<float> m(lines * 16);
    for (int line = 0; line < lines; line++)
        for (int k = 0; k < 16; k++) {
            u32 at = address(descriptor, rows, line, k);
            if (at + 2 > LIMIT) return fail("a product reads beyond shared memory"), m;
            u32 who = b.stored[at / 16];
            if (who == UNFILLED) fail("a product reads shared memory that nothing has filled");
            else if (who != NOBODY) fail("a product reads what was stored without a fence");
            u16 bits;
            memcpy(&bits, &b.memory[at], 2);
            m[line * 16 + k] = value(bits);
        }
    return m;
}

// rows of a thread's elements: PTX ISA, wgmma m64nNk16, accumulator and left operand
int row_of(int thread, int i) { return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8; }
int column_of(int thread, int i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

void begin(Block& b, Product& p) {
    p.right = operand(b, p.b_rows, p.b, p.columns);
    touch(b, p, p.b_rows, p.b, p.columns, 1);
    if (p.in_registers) {
        p.left.assign(64 * 16, 0);
        for (int t = 0; t < 128; t++)
            for (int r = 0; r < 4; r++)
                for (int e = 0; e < 2; e++)
                    p.left[row_of(t, 2 * r) * 16 + r / 2 * 8 + t % 4 * 2 + e] =
                        value(p.a_held[t][r] >> 16 * e);
    } else {
        p.left = operand(b, p.a_rows, p.a, 64);
        touch(b, p, p.a_rows, p.a, 64, 1);
    }
    p.read = true;
}

constexpr u32 POISON = 0x7fc0dead;  // in accumulators while a product is in flight

bool alike(const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && !memcmp(x.data(), y.data(), 4 * x.size());
}

void complete(Block& b, Product& p) {
    bool whole = alike(operand(b, p.b_rows, p.b, p.columns), p.right);
    touch(b, p, p.b_rows, p.b, p.columns, -1);
    if (p.in_registers) {
        for (int t = 0; t < 128; t++)
            if (memcmp(p.a_at[t], p.a_held[t], 16)) fail("a left operand's registers have changed");
    } else {
        whole = whole && alike(operand(b, p.a_rows, p.a, 64), p.left);
        touch(b, p, p.a_rows, p.a, 64, -1);
    }
    if (!whole) fail("shared memory changed under a product");
    std::vector<float> d(64 * p.columns);
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < p.columns; n++) {
            const float *x = &p.left[m * 16], *y = &p.right[n * 16];
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += x[k] * y[k];
            d[m * p.columns + n] = sum;
        }
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < p.columns / 2; i++) {
            float old = p.d[t][i], result = d[row_of(t, i) * p.columns + column_of(t, i)];
            if (!p.before[t].empty()) {
                if (memcmp(&old, &POISON, 4)) fail("an accumulator is touched in flight");
                old = p.before[t][i];
            }
            p.d[t][i] = p.add ? old + result : result;
        }
    p.done = true;
}

// Reads and runs what has been issued, up to product `end`.
void run_products(Block& b, Group& g, size_t end) {
    for (; g.next < end; g.next++) {
        Product& p = *g.products[g.next];
        if (!p.read) begin(b, p);
        complete(b, p);
    }
}

}  // namespace

namespace emu {

int thread() { return now->index; }
int block() { return now->block->index; }
int blocks() { return block_total; }
u32 base() { return BASE; }
void step() {
    now->ready = [] { return true; };
    yield();
}

void mbarrier_init(u32 at, u32 count) {
    Mbarrier& m = now->block->mbarriers[at];
    if (m.made || at % 8 || at + 8 > LIMIT) fail("an mbarrier made twice or out of place");
    m = {count, count, 0, 0, true};
}
static Mbarrier& find(Block& b, u32 at) {
    Mbarrier& m = b.mbarriers[at];
    if (!m.made) fail("an mbarrier that was not made");
    return m;
}
static void turn(Mbarrier& m) {
    if (m.pending == 0 && m.bytes == 0) {
        m.phase++;
        m.pending = m.count;
    }
}
static void arrive(Mbarrier& m) {
    if (m.pending == 0) return fail("too many arrivals at an mbarrier");
    m.pending--;
    turn(m);
}
void mbarrier_expect(u32 at, u32 bytes) {
    Mbarrier& m = find(*now->block, at);
    m.bytes += bytes;
    arrive(m);
}
void mbarrier_arrive(u32 at) {
    arrive(find(*now->block, at));
    if (chance(4)) step();
}
void mbarrier_wait(u32 at, u32 parity) {
    Mbarrier* m = &find(*now->block, at);
    if (chance(8)) step();
    wait_until([=] { return (m->phase & 1) != parity; });
}

void tma_load(u32 to, const TensorMap* map, u32 barrier, int x, int y, int z, int w) {
    Block* b = now->block;
    u32 row_bytes = map->box[0] * 2, rows = map->box[1];
    if (row_bytes != 128 || to % 1024 || to + rows * 128 > LIMIT) return fail("a box out of place");
    for (u32 i = 0; i < rows * 128 / 16; i++) {
        if (b->readers[to / 16 + i]) fail("a copy lands where a product still reads");
        b->stored[to / 16 + i] = UNFILLED;
    }
    memset(&b->memory[to], 0xff, rows * 128);
    b->copies.push_back({[=] {
        for (u32 r = 0; r < rows; r++)
            for (u32 e = 0; e < map->box[0]; e++) {
                u64 token = y + r, d = x + e;
                u16 number = 0;
                if (token < map->sizes[1] && d < map->sizes[0])
                    number = *(const u16*)((const char*)map->base + d * 2 + token * map->steps[0] +
                                           z * map->steps[1] + w * map->steps[2]);
                u32 at = to + r * 128 + e * 2;
                at ^= (at >> 7 & 7) << 4;
                memcpy(&b->memory[at], &number, 2);
            }
        for (u32 i = 0; i < rows * 128 / 16; i++) {
            if (b->readers[to / 16 + i]) fail("a copy landed where a product reads");
            b->stored[to / 16 + i] = NOBODY;
        }
        Mbarrier& m = find(*b, barrier);
        m.bytes -= rows * 128;
        turn(m);
    }});
}

void wgmma_fence() { now->fenced = true; }
void wgmma(float* d, int columns, const u32* a_registers, u64 a, u64 b, bool add, bool a_rows,
           bool b_rows) {
    Fiber* me = now;
    Block& block = *me->block;
    Group& g = block.groups[me->index / 128];
    if (!me->fenced) fail("a product without wgmma.fence");
    if (me->issued == g.products.size()) g.products.push_back(std::make_unique<Product>());
    Product& p = *g.products[me->issued++];
    int t = me->index % 128;
    if (p.arrived == 0) {
        p.columns = columns, p.add = add, p.a_rows = a_rows, p.b_rows = b_rows, p.a = a, p.b = b;
        p.in_registers = a_registers;
    } else if (p.columns != columns || p.add != add || p.a != a || p.b != b ||
               p.a_rows != a_rows || p.b_rows != b_rows) {
        fail("threads of a warpgroup disagree on a product");
    }
    p.d[t] = d;
    bool in_flight = false;
    for (size_t i = g.next; i + 1 < me->issued; i++) in_flight |= g.products[i]->d[t] == d;
    if (!in_flight) {
        p.before[t].assign(d, d + columns / 2);
        for (int i = 0; i < columns / 2; i++) memcpy(d + i, &POISON, 4);
    }
    if (a_registers) {
        p.a_at[t] = a_registers;
        memcpy(p.a_held[t], a_registers, 16);
    }
    if (++p.arrived == 128 && chance(2)) begin(block, p);
}
void wgmma_commit() {
    now->groups.push_back(now->issued);
}
void wgmma_wait(int pending) {
    Fiber* me = now;
    me->fenced = false;  // what follows may touch registers
    if ((int)me->groups.size() <= pending) return;
    size_t end = me->groups[me->groups.size() - 1 - pending];
    Group* g = &me->block->groups[me->index / 128];
    Block* b = me->block;
    if (chance(2)) step();
    wait_until([=] {
        return g->products.size() >= end && (end == 0 || g->products[end - 1]->arrived == 128);
    });
    run_products(*b, *g, end);
}

static Named* arrive(int id, int threads, bool x) {
    Named* n = &now->block->named[id];
    if (n->arrived == 0) n->votes = false;
    n->votes |= x;
    if (++n->arrived == threads) {
        n->vote = n->votes;
        n->arrived = 0;
        n->generation++;
    }
    return n;
}
static bool meet(int id, int threads, bool wait, bool x) {
    u32 generation = now->block->named[id].generation;
    Named* n = arrive(id, threads, x);
    if (!wait) return false;
    wait_until([=] { return n->generation != generation; });
    return n->vote;
}
void barrier(int id, int threads, bool wait) {
    if (id < 0 || id > 15 || threads % 32) return fail("no such barrier");
    meet(id, threads, wait, false);
}
bool barrier_any(int id, int threads, bool x) { return meet(id, threads, true, x); }
void block_sync() { meet(16, now->block->fibers.size(), true, false); }
static Warp* together(float x) {
    Warp* w = &now->block->warps[now->index / 32];
    u32 generation = w->generation;
    w->in[now->index % 32] = x;
    if (++w->arrived == 32) {
        memcpy(w->out, w->in, sizeof w->in);
        w->arrived = 0;
        w->generation++;
    }
    wait_until([=] { return w->generation != generation; });
    return w;
}
void warp_sync() { together(0); }
float across(float x, int mask) {
    int lane = now->index % 32;
    float y = together(x)->out[lane ^ mask];
    warp_sync();  // nobody may overwrite what a slow lane still reads
    return y;
}

void fence_async() {
    for (u32& who : now->block->stored)
        if (who == (u32)now->index) who = NOBODY;
}
void store_matrices(u32 at, const u32* r) {
    // the address of lane l belongs to row l % 8 of matrix l / 8; register m of lane t holds row
    // t / 4 and columns 2 (t % 4) and one more of matrix m
    Block& b = *now->block;
    Warp& w = b.warps[now->index / 32];
    int lane = now->index % 32;
    if (at % 16 || at + 16 > LIMIT) return fail("stmatrix out of place");
    memcpy(w.pieces[lane], r, 16);
    warp_sync();
    for (int i = 0; i < 4; i++)  // this lane writes its row
        memcpy(&b.memory[at + 4 * i], &w.pieces[lane % 8 * 4 + i][lane / 8], 4);
    if (b.readers[at / 16]) fail("a store lands where a product still reads");
    b.stored[at / 16] = now->index;
    warp_sync();
}
u32 load_shared(u32 at) {
    u32 x;
    memcpy(&x, &now->block->memory[at], 4);
    return x;
}

}  // namespace emu

// Runs `kernel` for `total` blocks of `threads`, `resident` at once; empty, or what went wrong.
static std::string run(std::function<void()> kernel, int total, int threads, int resident,
                       unsigned seed) {
    dice.seed(seed);
    failure.clear();
    entry = kernel;
    block_total = total;
    std::list<std::unique_ptr<Block>> live;
    int started = 0;
    while ((started < total || !live.empty()) && failure.empty()) {
        while (started < total && (int)live.size() < resident) {
            auto b = std::make_unique<Block>();
            b->index = started++;
            b->left = threads;
            b->warps.resize((threads + 31) / 32);
            for (int t = 0; t < threads; t++) {
                auto f = std::make_unique<Fiber>();
                f->index = t;
                f->block = b.get();
                f->stack.reset(new char[64 << 10]);
                getcontext(&f->context);
                f->context.uc_stack.ss_sp = f->stack.get();
                f->context.uc_stack.ss_size = 64 << 10;
                makecontext(&f->context, start, 0);
                b->fibers.push_back(std::move(f));
            }
            live.push_back(std::move(b));
        }
        bool moved = false;
        for (auto& b : live) {
            if (b->asleep ? b->asleep-- : chance(50) && (b->asleep = dice() % 100)) {
                moved = true;  // other blocks get ahead
                continue;
            }
            // warps run in an order of the seed's, each of its lanes as far as it gets
            size_t warps = b->warps.size(), at = dice() % warps;
            for (size_t w = 0; w < warps; w++, at = (at + 1) % warps) {
                if (chance(4)) {
                    moved = true;  // it lags behind
                    continue;
                }
                for (int t = at * 32; t < (int)at * 32 + 32 && t < threads; t++) {
                    Fiber& f = *b->fibers[t];
                    if (f.over || (f.ready && !f.ready())) continue;
                    now = &f;
                    swapcontext(&scheduler, &f.context);
                    moved = true;
                    if (!failure.empty()) return failure;
                }
            }
            for (auto c = b->copies.begin(); c != b->copies.end();) {
                moved = true;
                if (chance(3)) {
                    c->land();
                    c = b->copies.erase(c);
                } else {
                    c++;
                }
            }
        }
        live.remove_if([](auto& b) {
            if (b->left) return false;
            for (auto& g : b->groups)
                if (g.next != g.products.size()) fail("a block ended before its products");
            if (!b->copies.empty()) fail("a block ended before its copies");
            return true;
        });
        if (!moved) fail("nobody can go on");
    }
    return failure;
}

#include "forward.cu"
#include "backward.cu"
#include "probes.cu"

static char message[256];
static const char* answer(const std::string& what) {
    snprintf(message, sizeof message, "%s", what.c_str());
    return message;
}

extern "C" {
const char* emulated_forward(int d, const TensorMap* teacher, const TensorMap* student, float* kl,
                             float* stats, int tokens, int heads, int all_heads, int together,
                             float c, int resident, unsigned seed) {
    auto kernel = [=] {
        (d == 64 ? forward_64 : forward_128)(*teacher, *student, kl, stats, tokens, heads,
                                             all_heads, together, c);
    };
    return answer(run(kernel, all_heads * ((tokens + 127) / 128), THREADS, resident, seed));
}
const char* emulated_backward(int d, int ordered, const TensorMap* teacher,
                              const TensorMap* student, const float* stats, const float* grad,
                              float* sums, float* own_sums, u32* turns, int tokens, int heads,
                              int all_heads, int together, float c, int resident, unsigned seed) {
    auto kernel = [=] {
        auto f = ordered ? (d == 64 ? backward_ordered_64 : backward_ordered_128)
                         : (d == 64 ? backward_64 : backward_128);
        f(*teacher, *student, stats, grad, sums, own_sums, turns, tokens, heads, all_heads,
          together, c);
    };
    return answer(run(kernel, all_heads * ((tokens + 127) / 128), THREADS, resident, seed));
}
const char* emulated_finish(int d, const float* sums, const float* own_sums, u32* out, int tokens,
                            int all_heads, float scale) {
    auto kernel = [=] {
        (d == 64 ? finish_64 : finish_128)(sums, own_sums, out, tokens, scale);
    };
    return answer(run(kernel, all_heads * 2 * ((tokens + 127) / 128), 128, 1, 0));
}
int emulated_shared(int backward, int d) {  // bytes, barriers and all
    if (!backward)
        return d == 64 ? ForwardShape<64>::BARRIERS + 8 + 16 * ForwardShape<64>::SLOTS
                       : ForwardShape<128>::BARRIERS + 8 + 16 * ForwardShape<128>::SLOTS;
    return d == 64 ? BackwardShape<64>::BARRIERS + 40 + 16 * BackwardShape<64>::SLOTS
                   : BackwardShape<128>::BARRIERS + 40 + 16 * BackwardShape<128>::SLOTS;
}
const char* emulated_copy(const TensorMap* x, u32* out, unsigned seed) {
    return answer(run([=] { probe_copy(*x, out); }, 1, 128, 1, seed));
}
const char* emulated_products(const TensorMap* x, const TensorMap* y, float* out, unsigned seed) {
    return answer(run([=] { probe_products(*x, *y, out, 0); }, 1, 128, 1, seed));
}
const char* emulated_adds(float* out, u32* turn, int blocks, unsigned seed) {
    return answer(run([=] { probe_adds(out, turn); }, blocks, 128, 3, seed));
}
}
