// A part of feedback.cpp, included in each variant: rounding by entries of a codebook, which give several
// neighbouring columns their values at once.
//
// Let x be the best values that some columns could have, in steps, and A their matrix in `squares`. The values v
// cost (x - v) A (x - v)'. All entries are compared by that, with the signs of x. The halves of entries are few:
// what a half costs by itself is computed once, and an entry adds the product of its two.

#define HALVES 128
#define STANDING -1
#define PICK(which, yes, no) (((which) & (yes)) | (~(which) & (no)))

// What is chosen for `length` columns, in steps: the values, the entry, the signs, what it costs.
struct Choice {
    vec values[PANEL], cost;
    mask entry, signs;
};

// The entry that costs least where all values have the signs of `x` but for those of `flipped`.
INLINE void search(const int length, const Codebook *book, const float *square, const vec *x, const mask *flipped,
                   Choice *choice) {
    const int half = length / 2;
    vec folded[PANEL * PANEL], sign[PANEL], slope[PANEL], second[HALVES], whole = ALL(0.0f);
    for (int i = 0; i < length; i++)
        sign[i] = SELECT((x[i] < ALL(0.0f)) ^ flipped[i], ALL(-1.0f), ALL(1.0f));
    for (int i = 0; i < length; i++) {
        vec sum = ALL(0.0f);
        for (int l = 0; l < length; l++) {
            sum += x[l] * ALL(square[i * length + l]);
            folded[i * length + l] = sign[i] * sign[l] * ALL(square[i * length + l]);
        }
        whole += sum * x[i];
        slope[i] = sum * sign[i] * ALL(-2.0f);
    }
    for (int64_t s = 0; s < book->second_count; s++) {
        const float *v = book->seconds + s * half;
        second[s] = whole;
        for (int i = 0; i < half; i++) {
            vec part = slope[half + i];
            for (int l = 0; l < half; l++) part += folded[(half + i) * length + half + l] * ALL(v[l]);
            second[s] += part * ALL(v[i]);
        }
    }
    vec best = ALL(3e38f);
    mask entry = {};
    for (int64_t f = 0; f < book->first_count; f++) {
        const float *u = book->firsts + f * half;
        vec first = ALL(0.0f), cross[PANEL / 2];
        for (int i = 0; i < half; i++) {
            vec part = slope[i];
            for (int l = 0; l < half; l++) part += folded[i * length + l] * ALL(u[l]);
            first += part * ALL(u[i]);
            cross[i] = ALL(0.0f);
            for (int l = 0; l < half; l++) cross[i] += folded[l * length + half + i] * ALL(2 * u[l]);
        }
        for (int32_t e = book->starts[f]; e < book->starts[f + 1]; e++) {
            const float *v = book->seconds + book->second_of[e] * half;
            vec cost = first + second[book->second_of[e]];
            for (int i = 0; i < half; i++) cost += cross[i] * ALL(v[i]);
            mask better = cost < best;
            best = SELECT(better, cost, best);
            entry = PICK(better, (mask){} + e, entry);
        }
    }
    mask signs = {};
    for (int i = 0; i < length; i++) signs |= PICK(sign[i] < ALL(0.0f), (mask){} + (1 << i), (mask){});
    choice->cost = best;
    choice->entry = entry;
    choice->signs = signs;
    for (int r = 0; r < ROWS; r++) {
        int32_t e = entry[r], f = book->first_of[e];
        for (int i = 0; i < half; i++) {
            choice->values[i][r] = sign[i][r] * book->firsts[f * half + i];
            choice->values[half + i][r] = sign[half + i][r] * book->seconds[book->second_of[e] * half + i];
        }
    }
}

// Where `better`, the choice becomes `one`.
INLINE void take(const int length, mask better, const Choice *one, Choice *best) {
    for (int i = 0; i < length; i++) best->values[i] = SELECT(better, one->values[i], best->values[i]);
    best->cost = SELECT(better, one->cost, best->cost);
    best->entry = PICK(better, one->entry, best->entry);
    best->signs = PICK(better, one->signs, best->signs);
}

// The same with an even (0) or odd (1) number of negative values, or with any number (-1). Where the signs of
// `x` do not do, that one is flipped which costs least by the diagonal, could all magnitudes be chosen freely.
INLINE void choose(const int length, const Codebook *book, const float *square, const vec *x, int parity,
                   Choice *choice) {
    mask flipped[PANEL] = {}, wrong = {}, at = {};
    vec smallest = ALL(book->firsts[0]), least = ALL(3e38f);
    for (int i = 0; i < length; i++) {
        wrong ^= x[i] < ALL(0.0f);
        vec size = SELECT(x[i] < ALL(0.0f), -x[i], x[i]), inside = smallest - size;
        inside = SELECT(inside > ALL(0.0f), inside, ALL(0.0f));
        vec cost = ((size + smallest) * (size + smallest) - inside * inside) * ALL(square[i * length + i]);
        mask better = cost < least;
        least = SELECT(better, cost, least);
        at = PICK(better, (mask){} + i, at);
    }
    if (parity > 0) wrong = ~wrong;
    for (int i = 0; i < length; i++)
        if (parity >= 0) flipped[i] = wrong & (at == (mask){} + i);
    search(length, book, square, x, flipped, choice);
}

// What it costs to keep `values`.
INLINE vec kept(const int length, const float *square, const vec *x, const vec *values) {
    vec cost = ALL(0.0f);
    for (int i = 0; i < length; i++) {
        vec sum = ALL(0.0f);
        for (int l = 0; l < length; l++) sum += (x[l] - values[l]) * ALL(square[i * length + l]);
        cost += (x[i] - values[i]) * sum;
    }
    return cost;
}

INLINE void round_entries(const int length, const float *weights, int64_t rows, int64_t columns,
                          const int32_t *order, int64_t group, const float *steps, int64_t stride,
                          const Codebook *book, const float *panels, const float *squares, const float *others,
                          const float *other_squares, uint16_t *entries, uint8_t *signs, void *scratch) {
    const int units = PANEL / length;
    vec *target = (vec *)scratch, *error = target + columns * TILES;
    for (int64_t first = 0; first < rows; first += ROWS * TILES) {
        int64_t here = rows - first < ROWS * TILES ? rows - first : ROWS * TILES;
        int64_t tiles = (here + ROWS - 1) / ROWS;
        gathered(weights, first, here, columns, order, target);
        for (int round = 0; round < (others ? 2 : 1); round++) {
            for (int64_t p = 0; p < columns / PANEL; p++) {
                const float *panel = (round ? others : panels) + p * columns * PANEL;
                const float *square = (round ? other_squares : squares) + p * PANEL * length;
                int64_t before = round ? columns : p * PANEL;
                for (int64_t t = 0; t < tiles; t++) {
                    vec *w = target + t * columns + p * PANEL, *e = error + t * columns + p * PANEL;
                    vec sum[PANEL], step;
                    summed(w, error + t * columns, panel, before, sum);
                    memcpy(&step, steps + order[p * PANEL] / group * stride + first + t * ROWS, sizeof(vec));
                    mask some = step != ALL(0.0f);
                    vec inverse = SELECT(some, ALL(1.0f) / step, ALL(0.0f));
                    // Signs are even in all 8 columns: of two units both are even, or both odd. What the round
                    // before has chosen stays where nothing costs less.
                    Choice best[2] = {};
                    vec least = ALL(0.0f), old[PANEL];
                    for (int j = 0; j < PANEL; j++) {
                        old[j] = round ? (w[j] - e[j]) * inverse : ALL(0.0f);
                        best[j / length].values[j % length] = old[j];
                    }
                    for (int u = 0; u < units; u++) best[u].entry = (mask){} + STANDING;
                    for (int option = 0; option < (book->even ? units : 1); option++) {
                        Choice one[2];
                        vec x[PANEL], total = ALL(0.0f);
                        for (int j = 0; j < PANEL; j++) x[j] = sum[j] * inverse;
                        for (int u = 0; u < units; u++) {
                            const float *own = square + u * length * length;
                            choose(length, book, own, x + u * length, book->even ? option : -1, &one[u]);
                            total += one[u].cost;
                            if (round) total -= kept(length, own, x + u * length, old + u * length);
                            for (int j = u * length; j < (u + 1) * length; j++) {
                                vec change = (round ? old[j] : w[j] * inverse) - one[u].values[j - u * length];
                                for (int l = (u + 1) * length; l < PANEL; l++)
                                    x[l] += change * ALL(panel[(p * PANEL + j) * PANEL + l]);
                            }
                        }
                        mask better = round || option ? total < least : ~(mask){};
                        least = SELECT(better, total, least);
                        for (int u = 0; u < units; u++) take(length, better, &one[u], &best[u]);
                    }
                    for (int j = 0; j < PANEL; j++) e[j] = w[j] - best[j / length].values[j % length] * step;
                    for (int64_t r = 0; r < ROWS && t * ROWS + r < here; r++) {
                        int64_t place = ((first + t * ROWS + r) * columns + order[p * PANEL]) / PANEL;
                        if (best[0].entry[r] == STANDING) continue;
                        for (int u = 0; u < units; u++)
                            entries[place * units + u] = (uint16_t)best[u].entry[r];
                        signs[place] = (uint8_t)(best[0].signs[r] | best[units - 1].signs[r] << (PANEL - length));
                    }
                }
            }
        }
    }
}

static void PASTE(feed_back_entries, VARIANT)(const float *weights, int64_t rows, int64_t columns,
                                              const int32_t *order, int64_t group, const float *steps,
                                              int64_t stride, const Codebook *book, const float *panels,
                                              const float *squares, const float *others, const float *other_squares,
                                              uint16_t *entries, uint8_t *signs, void *scratch) {
    if (book->length == 4)
        round_entries(4, weights, rows, columns, order, group, steps, stride, book, panels, squares, others,
                      other_squares, entries, signs, scratch);
    else
        round_entries(8, weights, rows, columns, order, group, steps, stride, book, panels, squares, others,
                      other_squares, entries, signs, scratch);
}

#undef HALVES
#undef STANDING
#undef PICK
