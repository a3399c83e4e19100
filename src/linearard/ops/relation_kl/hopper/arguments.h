// What each kernel is given: one struct by value. kernels.py packs the same fields.
#pragma once
#include <hopper_ptx.h>

// One side of each relation.
struct Maps {
    TensorMap teacher[3], student[3];  // [B, heads, N, D] each, in boxes of 64 numbers x 64 tokens
    int share[3];                      // query heads to one of these
};

// Up to three relations, whose query heads (of all batches) stand one after the other.
struct Relations {
    Maps queries, keys;  // the same in self-relations
    int first[3];        // head at which it begins; beyond all heads: there is none
    int heads[3];        // query heads of a sequence
};

// Row i sees the columns from first(i) to i.
struct Seen {
    const int* starts;  // [tokens] first columns, which never decrease; null: the window's
    int window, tokens;
    DEVICE bool all_before() const { return !starts && window >= tokens; }
    DEVICE int first(int row) const {  // rows beyond the last see what it does
        row = row < tokens ? row : tokens - 1;
        if (starts) return starts[row];
        return row < window ? 0 : row + 1 - window;
    }
};

struct ForwardArguments {
    Relations relations;
    Seen seen;
    float* kl;     // [all heads, N]
    float* stats;  // [4, all heads, N], `length` apart: offsets of teacher and student, ratio, 1 / sum
    u64 length;
    int all_heads, together;
    float c;  // scale log2(e)
};

struct BackwardArguments {
    Relations relations;
    Seen seen;
    const float* stats;
    const float* grad;  // [heads, N]
    float* sums;         // [heads, parts, blocks, 128, D], as backward.cu says; zeros if adds come in any order
    float* own_sums;     // of one part, not zeros: row parts that are to be added to `sums` later, or null
    u32* own_gradients;  // [heads, N, D] bfloat16, of queries that are not the keys; or null
    u32* turns_made;     // [heads, blocks, 2, chains] zeros, or null
    u64 length;
    int all_heads, together;
    int from_head;  // heads that were worked on before; all pointers lie behind them
    float c, scale;
};

struct FinishArguments {
    const float* sums;  // [heads] of `a_head` numbers, `parts` of each, `apart` from each other
    u32* out;           // [heads, N, D] bfloat16
    u64 a_head, apart;
    int parts, tokens;
    float scale;
};
