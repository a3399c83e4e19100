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
#include "machine.h"

namespace emu {

int thread() { return now->index; }
int block() { return now->block->index; }
int blocks() { return block_total; }
u32 base() { return BASE; }
static void step() {
    now->ready = [] { return true; };
    yield();
}
int& looks() {
    static int since = 0;
    return since;
}
void look() {
    if (++looks() > 2000000) fail("nobody can go on");
    step();
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
    for (u32 piece : now->stores) {
        u32& who = now->block->stored[piece];
        if (who == (u32)now->index) who = NOBODY;
    }
    now->stores.clear();
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
    now->stores.push_back(at / 16);
    warp_sync();
}

}  // namespace emu

// Runs `kernel` for `total` blocks of `threads`, `resident` at once; empty, or what went wrong.
static std::string run(std::function<void()> kernel, int total, int threads, int resident,
                       unsigned seed) {
    dice.seed(seed);
    failure.clear();
    emu::looks() = 0;
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
                    resume(f);
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

static char message[256];
static const char* answer(const std::string& what) {
    snprintf(message, sizeof message, "%s", what.c_str());
    return message;
}

extern "C" {
// What the driver does, with the struct of the kernel's arguments; the answer: what went wrong.
const char* emulated_launch(const char* name, const void* given, int blocks, int threads,
                            int resident, unsigned seed) {
#define KERNEL_OF(kernel, type)                                                                 \
    if (!strcmp(name, #kernel))                                                                 \
        return answer(run([=] { kernel(*(const type*)given); }, blocks, threads, resident, seed));
    KERNEL_OF(forward_64, ForwardArguments)
    KERNEL_OF(backward_ordered_64, BackwardArguments)
    KERNEL_OF(backward_plain_ordered_64, BackwardArguments)
    KERNEL_OF(finish_64, FinishArguments)
#ifndef DEFECTIVE  // a defect is looked for in the kernels above; others take longer to compile
    KERNEL_OF(forward_128, ForwardArguments)
    KERNEL_OF(backward_64, BackwardArguments)
    KERNEL_OF(backward_128, BackwardArguments)
    KERNEL_OF(backward_ordered_128, BackwardArguments)
    KERNEL_OF(backward_plain_64, BackwardArguments)
    KERNEL_OF(backward_plain_128, BackwardArguments)
    KERNEL_OF(backward_plain_ordered_128, BackwardArguments)
    KERNEL_OF(finish_128, FinishArguments)
#endif
    return "no such kernel";
}
int emulated_size(const char* name) {  // of the arguments
    return name[0] == 'b' ? sizeof(BackwardArguments)
           : name[1] == 'o' ? sizeof(ForwardArguments) : sizeof(FinishArguments);
}
int emulated_shared(int backward, int d) {  // bytes, barriers and all
#define BYTES(Shape) d == 64 ? Shape<64>::BARRIERS + Shape<64>::ALL_BARRIERS \
                             : Shape<128>::BARRIERS + Shape<128>::ALL_BARRIERS
    return backward ? (BYTES(BackwardShape)) : (BYTES(ForwardShape));
}
}
