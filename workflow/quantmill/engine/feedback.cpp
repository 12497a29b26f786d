// Rounds rows of weights to the grids of their blocks, one column after another, and feeds each error
// back into the columns that follow (quantmill.quantize.feedback has the formula).
//
// Rows are independent: ROWS of them are the lanes of a vector, PANEL columns of them are summed in
// registers, and TILES vectors of rows go through a panel of the matrix while it is in the cache. So no
// order of additions depends on how rows are divided among threads.
//
// The file includes itself, once for each instruction set; the processor at hand decides which is called.

#ifndef VARIANT

#include <cstdint>
#include <cstring>

#define PANEL 8
#define TILES 4

// Magnitudes that an entry of a codebook gives to `length` neighbouring weights: a first half of `firsts`
// [., length / 2] and a second half of `seconds`; first_of[entry] and second_of[entry] are which. Entries are
// numbered by first halves: those of half f begin at starts[f]. With `even`, of 8 weights an even number are
// negative.
struct Codebook {
    int64_t length, even, first_count, second_count;
    const float *firsts, *seconds;
    const int32_t *starts, *first_of, *second_of;
};

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(sets) PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET(sets) PRAGMA(GCC push_options) PRAGMA(GCC target(sets))
#define TARGET_END PRAGMA(GCC pop_options)
#endif

#define VARIANT plain
#define ROWS 8
#include "feedback.cpp"
#undef VARIANT
#undef ROWS

#if defined(__x86_64__)
TARGET("avx2,fma")
#define VARIANT avx2
#define ROWS 8
#include "feedback.cpp"
#undef VARIANT
#undef ROWS
TARGET_END

TARGET("avx512f,avx512dq,avx512vl,fma")
#define VARIANT avx512
#define ROWS 16
#include "feedback.cpp"
#undef VARIANT
#undef ROWS
TARGET_END

static int widest() {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#define CALL(function, ...)                            \
    switch (set < 0 ? widest() : set) {                \
    case 2: return function##_avx512(__VA_ARGS__);     \
    case 1: return function##_avx2(__VA_ARGS__);       \
    default: return function##_plain(__VA_ARGS__);     \
    }
#else
#define CALL(function, ...) (void)set; return function##_plain(__VA_ARGS__);
#endif

extern "C" {

int64_t quantmill_panel() { return PANEL; }

// Bytes of scratch that `quantmill_feed_back` needs for `columns`, whatever the instruction set.
int64_t quantmill_scratch(int64_t columns) { return 2 * columns * TILES * 64; }

// The rows that `steps` and `offsets` are padded to a multiple of.
int64_t quantmill_rows() { return 16; }

// The unit upper factor of a matrix whose reversal (rows and columns from last to first) has the lower
// Cholesky factor `lower` [columns, columns]: as panels [columns / PANEL][columns][PANEL], of which only
// the rows above a panel's end are written.
void quantmill_panels(const float *lower, int64_t columns, float *panels) {
    for (int64_t p = 0; p < columns / PANEL; p++)
        for (int64_t i = 0; i < (p + 1) * PANEL; i++)
            for (int64_t j = 0; j < PANEL; j++) {
                int64_t row = columns - 1 - i, column = columns - 1 - (p * PANEL + j);
                panels[(p * columns + i) * PANEL + j] =
                    column < row ? lower[row * columns + column] / lower[column * columns + column] : 0;
            }
}

// A matrix whose reversal is the symmetric `reversed` [columns, columns], in panels as above, its columns
// divided by their diagonal, which is then 0.
void quantmill_all_panels(const float *reversed, int64_t columns, float *panels) {
    for (int64_t p = 0; p < columns / PANEL; p++)
        for (int64_t i = 0; i < columns; i++)
            for (int64_t j = 0; j < PANEL; j++) {
                int64_t row = columns - 1 - i, column = columns - 1 - (p * PANEL + j);
                panels[(p * columns + i) * PANEL + j] =
                    column == row ? 0 : reversed[row * columns + column] / reversed[column * columns + column];
            }
}

// The codes [rows, columns] of `weights` [rows, columns].
//
// `order` [columns]: the columns in the order of rounding. `steps`, `offsets` [columns / group, stride]: of
// a block of `group` columns and a row; a value is offset + step * values[code], without `values` offset +
// step * code. `thresholds` [levels - 1] lie between the values. `panels` is the factor. With `others`, panels
// of the matrix itself (columns divided by their diagonal, which is 0), every column is then rounded once
// more, for the errors of all others; else `targets` [rows, columns], where given, gets what was rounded.
// `set`: which instruction set; -1: the best.
void quantmill_feed_back(const float *weights, int64_t rows, int64_t columns, const int32_t *order, int64_t group,
                         const float *steps, const float *offsets, int64_t stride, int64_t levels,
                         const float *values, const float *thresholds, const float *panels, const float *others,
                         uint8_t *codes, float *targets, void *scratch, int64_t set) {
    CALL(feed_back, weights, rows, columns, order, group, steps, offsets, stride, levels, values, thresholds, panels,
         others, codes, targets, scratch)
}

// Of weights [rows, columns] that are rounded by entries of a codebook: `entries` [rows, columns / length] and
// `signs` [rows, columns / 8], a bit a weight.
//
// `order` [columns] has the columns of 8 neighbours together. `panels` are as above, but each `length` columns
// are multiplied by the inverse of their own square on the diagonal, which is then 0: so what is rounded are
// the best values that these columns could have. `squares` [columns / length, length, length]: what it costs to
// have others. `others` and `other_squares` are the same of the matrix itself. A value is step * magnitude.
void quantmill_feed_back_entries(const float *weights, int64_t rows, int64_t columns, const int32_t *order,
                                 int64_t group, const float *steps, int64_t stride, const Codebook *book,
                                 const float *panels, const float *squares, const float *others,
                                 const float *other_squares, uint16_t *entries, uint8_t *signs, void *scratch,
                                 int64_t set) {
    CALL(feed_back_entries, weights, rows, columns, order, group, steps, stride, book, panels, squares, others,
         other_squares, entries, signs, scratch)
}
}

#else

namespace PASTE(of, VARIANT) {

typedef float vec __attribute__((vector_size(ROWS * sizeof(float))));
typedef int32_t mask __attribute__((vector_size(ROWS * sizeof(float))));

#define ALL(x) ((x) - (vec){})
#define SELECT(which, yes, no) ((vec)(((which) & (mask)(yes)) | (~(which) & (mask)(no))))
#define INLINE static inline __attribute__((always_inline))

// The code of each of `x`: of a uniform grid the nearest integer, halves to even (adding 1.5 * 2^23 rounds
// so); else how many thresholds lie below it. What is no number gets 0.
static inline void coded(vec &x, int64_t levels, const float *thresholds) {
    vec code = ALL(0.0f);
    if (thresholds) {
        for (int64_t k = 0; k < levels - 1; k++) code += SELECT(x > ALL(thresholds[k]), ALL(1.0f), ALL(0.0f));
    } else {
        vec most = ALL((float)(levels - 1)), magic = ALL(12582912.0f);
        code = SELECT(x > code, x, code);
        code = SELECT(code < most, code, most);
        code = (code + magic) - magic;
    }
    x = code;
}

static inline void valued(vec &code, int64_t levels, const float *values) {
    if (!values) return;
    vec value = ALL(values[0]);
    for (int64_t k = 1; k < levels; k++)
        value += SELECT(code > ALL((float)k - 0.5f), ALL(values[k] - values[k - 1]), ALL(0.0f));
    code = value;
}

// The rows' weights in the order of rounding, a row a lane; lanes without a row have zeros.
INLINE void gathered(const float *weights, int64_t first, int64_t here, int64_t columns, const int32_t *order,
                     vec *target) {
    memset(target, 0, columns * TILES * sizeof(vec));
    for (int64_t r = 0; r < here; r++) {
        const float *row = weights + (first + r) * columns;
        float *lane = (float *)target + r / ROWS * columns * ROWS + r % ROWS;
        for (int64_t k = 0; k < columns; k++) lane[k * ROWS] = row[order[k]];
    }
}

INLINE void summed(const vec *w, const vec *e, const float *panel, int64_t before, vec *sum) {
    vec sums[PANEL];
    for (int j = 0; j < PANEL; j++) sums[j] = w[j];
    for (int64_t i = 0; i < before; i++)
        for (int j = 0; j < PANEL; j++) sums[j] += e[i] * ALL(panel[i * PANEL + j]);
    for (int j = 0; j < PANEL; j++) sum[j] = sums[j];
}

static void PASTE(feed_back, VARIANT)(const float *weights, int64_t rows, int64_t columns, const int32_t *order,
                                      int64_t group, const float *steps, const float *offsets, int64_t stride,
                                      int64_t levels, const float *values, const float *thresholds,
                                      const float *panels, const float *others, uint8_t *codes, float *targets,
                                      void *scratch) {
    vec *target = (vec *)scratch, *error = target + columns * TILES;
    for (int64_t first = 0; first < rows; first += ROWS * TILES) {
        int64_t here = rows - first < ROWS * TILES ? rows - first : ROWS * TILES;
        int64_t tiles = (here + ROWS - 1) / ROWS;
        gathered(weights, first, here, columns, order, target);
        for (int round = 0; round < (others ? 2 : 1); round++) {
            for (int64_t p = 0; p < columns / PANEL; p++) {
                const float *panel = (round ? others : panels) + p * columns * PANEL;
                int64_t before = round ? columns : p * PANEL;
                for (int64_t t = 0; t < tiles; t++) {
                    vec *w = target + t * columns, *e = error + t * columns;
                    vec sum[PANEL];
                    summed(w + p * PANEL, e, panel, before, sum);
                    for (int j = 0; j < PANEL; j++) {
                        int64_t k = p * PANEL + j, place = order[k] / group * stride + first + t * ROWS;
                        vec step, offset;
                        memcpy(&step, steps + place, sizeof(vec));
                        memcpy(&offset, offsets + place, sizeof(vec));
                        vec code = SELECT(step != ALL(0.0f), (sum[j] - offset) / step, ALL(0.0f));
                        coded(code, levels, thresholds);
                        vec value = code;
                        valued(value, levels, values);
                        vec now = w[k] - (value * step + offset), change = round ? now - e[k] : now;
                        e[k] = now;
                        for (int l = j + 1; l < PANEL; l++) sum[l] += change * ALL(panel[k * PANEL + l]);
                        if (others && !round) continue;  // they are rounded once more
                        mask whole = __builtin_convertvector(code, mask);
                        for (int64_t r = 0; r < ROWS && t * ROWS + r < here; r++) {
                            int64_t element = (first + t * ROWS + r) * columns + order[k];
                            codes[element] = (uint8_t)whole[r];
                            if (targets) targets[element] = sum[j][r];
                        }
                    }
                }
            }
        }
    }
}


#include "entries.h"

#undef ALL
#undef SELECT
#undef INLINE
}
using PASTE(of, VARIANT)::PASTE(feed_back, VARIANT);
using PASTE(of, VARIANT)::PASTE(feed_back_entries, VARIANT);

#endif
