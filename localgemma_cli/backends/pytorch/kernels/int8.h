/* Multiply rows by keys or values in 8 bits, with sums in float32. A row's result is the same bits for any number of
   rows. */

enum {
    INT8_ROWS = 4, /* rows that are computed together, with four keys or four dimensions of values */
    INT8_AHEAD = 1024, /* prefetch distance in bytes */
};

/* Multiply `count` rows of x, which are `k` apart, by four rows of k levels. */
INLINED void multiply_int8(const int count, long k, const float *x, const int8_t *const levels[4],
                           float sums[INT8_ROWS][4]) {
    Floats parts[INT8_ROWS][4];
    for (int row = 0; row < count; row++)
        for (int i = 0; i < 4; i++)
            parts[row][i] = every(0);
    long first = 0;
    for (; first + LANES <= k; first += LANES)
        for (int i = 0; i < 4; i++) {
            if (first % 64 == 0)
                prefetch(levels[i] + first + INT8_AHEAD, 64);
            Floats numbers = to_floats(from_bytes(levels[i] + first));
            for (int row = 0; row < count; row++)
                parts[row][i] = times_plus(numbers, floats(x + row * k + first), parts[row][i]);
        }
    for (int row = 0; row < count; row++) {
        _mm_storeu_ps(sums[row], totals(parts[row]));
        for (int i = 0; i < 4; i++)
            for (long rest = first; rest < k; rest++)
                sums[row][i] += x[row * k + rest] * levels[i][rest];
    }
}

/* `multiply_int8` with a constant count, so that sums stay in registers. */
static void multiply_int8_rows(int count, long k, const float *x, const int8_t *const levels[4],
                               float sums[INT8_ROWS][4]) {
    switch (count) {
    case 1: multiply_int8(1, k, x, levels, sums); break;
    case 2: multiply_int8(2, k, x, levels, sums); break;
    case 3: multiply_int8(3, k, x, levels, sums); break;
    case 4: multiply_int8(4, k, x, levels, sums); break;
    }
}

/* Multiply x [heads, rows, k] in float32 by levels [n, k] of each head -> out [heads, rows, n] in float32, and that by
   scales [heads, n] in bfloat16 unless NULL. Rows of levels are `stride` apart, their heads `next`, those of scales
   `far`. */
void NAMED(int8_rows)(long threads, long heads, long rows, long n, long k, const float *x, const int8_t *levels,
                      long next, long stride, const Half *scales, long far, float *out) {
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads) if (heads * n * k >= 200000)
    for (long head = 0; head < heads; head++)
        for (long first = 0; first < n; first += 4)
            for (long row = 0; row < rows; row += INT8_ROWS) {
                const int8_t *with[4];
                float sums[INT8_ROWS][4];
                long count = least(INT8_ROWS, rows - row);
                for (long i = 0; i < 4; i++)
                    with[i] = levels + head * next + least(first + i, n - 1) * stride;
                multiply_int8_rows(count, k, x + (head * rows + row) * k, with, sums);
                for (long r = 0; r < count; r++)
                    for (long i = 0; i < 4 && first + i < n; i++) {
                        float scale = scales ? widened(scales[head * far + first + i]) : 1;
                        out[(head * rows + row + r) * n + first + i] = sums[r][i] * scale;
                    }
            }
}
