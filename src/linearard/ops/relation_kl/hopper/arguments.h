// What each kernel is given: one struct by value. kernels.py packs the same fields.
#pragma once
#include <hopper_ptx.h>

// Up to three self-relations, whose heads (of all batches) stand one after the other.
struct Relations {
    TensorMap teacher[3], student[3];  // [B, H, N, D] each, in boxes of 64 numbers x 64 tokens
    int first[3];                      // head at which it begins; beyond all heads: there is none
    int heads[3];                      // H
};

// Row i sees the columns from first(i) to i.
struct Seen {
    const int* starts;  // [tokens] first columns, which never decrease; null: the window's
    int window, tokens;
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
    float* sums;        // [heads, blocks, 128, D], as backward.cu says; zeros if adds come in any order
    float* own_sums;    // the same, not zeros; null if adds come in any order
    u32* turns_made;    // [heads, blocks, 2] zeros, or null
    u64 length;
    int all_heads, together;
    int from_head;  // heads that were worked on before; all pointers lie behind them
    float c;
};

struct FinishArguments {
    const float* sums;
    const float* own_sums;  // or null
    u32* out;               // [heads, N, D] bfloat16
    int tokens;
    float scale;
};
