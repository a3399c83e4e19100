// The emulated machine: fibers, shared memory with who stored where, barriers, products.
#pragma once
#include <hopper_ptx.h>
#include <setjmp.h>
#include <ucontext.h>

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
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
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it goes on
    bool begun = false;
    std::unique_ptr<char[]> stack;
    int index = 0;
    bool over = false;
    Block* block = nullptr;
    std::function<bool()> ready;  // what it waits for
    size_t issued = 0;            // products
    std::vector<size_t> groups;   // products issued when each commit was made
    bool fenced = false;
    std::vector<u32> stores;  // 16-byte pieces stored to since its last fence
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

jmp_buf scheduler;
Fiber* now = nullptr;
std::function<void()> entry;
int block_total;

// Jumps, where swapcontext would ask the kernel for the signal mask each time.
void yield() {
    if (!_setjmp(now->place)) _longjmp(scheduler, 1);
}
void resume(Fiber& fiber) {
    now = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
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
