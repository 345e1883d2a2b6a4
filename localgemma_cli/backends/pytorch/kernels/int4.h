/* Multiply rows by 4-bit weights. A row's result is the same bits for any number of rows, with AVX-512 and with AVX2.

   A weight is (q - 8) * scale + offset, q in 0..15. The rows are rounded to 8 bits, with one step for each row and
   group of input features, so that integer dot products sum exactly.

   Weights are packed in blocks of output features as PyTorch packs them, 64 with AVX-512 and 32 without: for every
   input feature, a block's first half is in the low half bytes and its second half in the high ones. */

typedef struct { /* of one row and one group */
    float step;   /* the value of 1 in the rounded numbers */
    float sum;    /* of the numbers before rounding */
    int32_t zero; /* -8 times the sum of the rounded numbers */
} Part;

enum {
    INT4_BLOCK = 4 * LANES,  /* output features in a block */
    FOUR = 2 * INT4_BLOCK,   /* bytes of a block's weights for four input features */
    INT4_ROWS = 5,           /* rows that are computed together; their sums fill the registers */
    INT4_AHEAD = 3072,       /* prefetch distance in bytes */
    GROUPS_AHEAD = 8,
};

/* Round one row's numbers of one group to -127..127; the step is NaN if one of them is not finite. */
static Part round_group(long group, const Half *x, int8_t *rounded) {
    Half largest = 0; /* compared as bits: larger numbers have larger ones, and infinity has 0x7f80 */
    for (long i = 0; i < group; i++) {
        Half size = x[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    float sums[16] = {0}, sum = 0;
    for (long i = 0; i < group; i += 16)
        for (long j = 0; j < 16; j++)
            sums[j] += widened(x[i + j]);
    for (long j = 0; j < 16; j++)
        sum += sums[j];
    int known = largest >= 0x0d80 && largest < 0x7f80; /* below 2^-100 a number's inverse might overflow */
    float inverse = known ? 127 / widened(largest) : 0;
    int32_t total = 0;
    for (long i = 0; i < group; i++) {
        rounded[i] = known ? (int8_t)__builtin_rintf(widened(x[i]) * inverse) : 0;
        total += rounded[i];
    }
    float step = largest < 0x7f80 ? (known ? widened(largest) / 127 : 0) : __builtin_nanf("");
    return (Part){step, sum, -8 * total};
}

/* Unpack the weights of four input features, side by side in a lane, for four vectors of output features. */
INLINED void open_weights(const uint8_t *packed, Ints weights[4]) {
    Ints pairs[2];
    interleave(load(packed), load(packed + INT4_BLOCK), pairs);
    for (int i = 0; i < 2; i++) {
        weights[i] = both(pairs[i], all(0x0f0f0f0f));
        weights[2 + i] = high_halves(pairs[i]);
    }
}

/* Compute one block's output features for `count` rows of x; the rows are `k` apart, their parts `k / group`. */
INLINED void multiply_int4(const int count, long n, long k, long group, const int8_t *x, const Part *parts,
                           const uint8_t *packed, const Half *factors, Half *out) {
    Floats results[INT4_ROWS][4];
    for (int row = 0; row < count; row++)
        for (int i = 0; i < 4; i++)
            results[row][i] = every(0);
    for (long g = 0; g < k / group; g++) {
        Ints sums[INT4_ROWS][4], weights[4];
        prefetch(factors + 2 * (g + GROUPS_AHEAD) * n, 4 * INT4_BLOCK);
        for (int row = 0; row < count; row++)
            for (int i = 0; i < 4; i++)
                sums[row][i] = all(parts[row * (k / group) + g].zero);
        for (long first = g * group; first < (g + 1) * group; first += 4) {
            const uint8_t *here = packed + first / 4 * FOUR;
            prefetch(here + INT4_AHEAD, FOUR);
            open_weights(here, weights);
            for (int row = 0; row < count; row++) {
                int32_t four;
                memcpy(&four, x + row * k + first, sizeof four);
                for (int i = 0; i < 4; i++)
                    sums[row][i] = add_products(sums[row][i], weights[i], all(four));
            }
        }
        for (int i = 0; i < 4; i++) {
            Ints pairs = load(factors + 2 * (g * n + i * LANES)); /* a scale below an offset */
            Floats scale = as_floats(shifted_up(pairs)), offset = as_floats(both(pairs, all((int32_t)0xffff0000)));
            for (int row = 0; row < count; row++) {
                const Part *part = parts + row * (k / group) + g;
                Floats partial = times_plus(offset, every(part->sum), results[row][i]);
                results[row][i] = times_plus(times(scale, every(part->step)), to_floats(sums[row][i]), partial);
            }
        }
    }
    for (int row = 0; row < count; row++) {
        float whole[INT4_BLOCK];
        for (int i = 0; i < 4; i++)
            store(whole + i * LANES, results[row][i]);
        for (int i = 0; i < INT4_BLOCK; i++)
            out[row * n + i] = narrowed(whole[i]);
    }
}

/* `multiply_int4` with a constant count, so that sums stay in registers. */
static void multiply_int4_rows(int count, long n, long k, long group, const int8_t *x, const Part *parts,
                               const uint8_t *packed, const Half *factors, Half *out) {
    switch (count) {
    case 1: multiply_int4(1, n, k, group, x, parts, packed, factors, out); break;
    case 2: multiply_int4(2, n, k, group, x, parts, packed, factors, out); break;
    case 3: multiply_int4(3, n, k, group, x, parts, packed, factors, out); break;
    case 4: multiply_int4(4, n, k, group, x, parts, packed, factors, out); break;
    case 5: multiply_int4(5, n, k, group, x, parts, packed, factors, out); break;
    }
}

/* Multiply x [m, k] by packed weights [n, k / 2] -> out [m, n], x and out in bfloat16; factors [k / group, n, 2] are
   scale and offset in bfloat16. n is a multiple of the block, `group` of 32. Scratch: rounded [m, k], parts
   [m, k / group]. */
void NAMED(int4_rows)(long threads, long m, long n, long k, long group, const Half *x, const uint8_t *packed,
                      const Half *factors, Half *out, int8_t *rounded, Part *parts) {
    long tiles = (m + INT4_ROWS - 1) / INT4_ROWS;
#pragma omp parallel num_threads(threads) if (m * n * k >= 200000)
    {
#pragma omp for schedule(static)
        for (long g = 0; g < m * k / group; g++)
            parts[g] = round_group(group, x + g * group, rounded + g * group);
#pragma omp for schedule(static)
        for (long first = 0; first < n; first += INT4_BLOCK)
            for (long tile = 0; tile < tiles; tile++) { /* the block stays in the cache */
                long row = m * tile / tiles, count = m * (tile + 1) / tiles - row;
                multiply_int4_rows(count, n, k, group, rounded + row * k, parts + row * (k / group),
                             packed + first * (k / 2), factors + 2 * first, out + row * n + first);
            }
    }
}
