// Sums of the squares of what enters a weight, for the importance matrix.
//
// In f32, row after row, each product and each sum rounded by itself: the same bits as numpy's
// np.add.reduce(rows * rows, axis=0), in one pass over the rows. Blocks of columns stay in the cache, and
// may be computed in any order or at once.

#include <cstdint>

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

static const int64_t BLOCK = 1024;  // columns: their sums take 4 KiB

extern "C" {

// Adds to sums [matrices, columns] the squares of the columns `first` to `last` of `rows` rows. The row i is
// at data + offsets[i] (bytes), and its matrix is matrix[i], or 0 where `matrix` is null.
void quantmill_squares(const char *data, const int64_t *offsets, const int32_t *matrix, int64_t rows,
                       int64_t columns, int64_t first, int64_t last, float *sums) {
    for (int64_t start = first; start < last; start += BLOCK) {
        const int64_t end = start + BLOCK < last ? start + BLOCK : last;
        for (int64_t i = 0; i < rows; i++) {
            const float *row = (const float *)(data + offsets[i]);
            float *sum = sums + (matrix ? (int64_t)matrix[i] * columns : 0);
            for (int64_t c = start; c < end; c++) sum[c] += row[c] * row[c];
        }
    }
}
}
