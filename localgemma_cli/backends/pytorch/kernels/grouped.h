/* Multiply rows by weights in 4 or 8 bits. A row's result is the same bits for any number of rows and for every
   instruction set.

   Weights are in blocks of 32 output features, and a block in groups of 32 input features. The bytes of a group are in
   the order in which they are read: its levels, 32 scales (unsigned), and with 4 bits 32 offsets (signed). Scales and
   offsets are multiplied by a factor of their output feature. A weight is
     4 bits: (level - 7.5) * scale + offset, level in 0..15
     8 bits: level * scale, level in -127..127
   Levels of four input features are side by side for each output feature. With 4 bits 64 bytes have the outputs 0..15
   in their low halves and 16..31 in their high ones.

   The rows are rounded to 8 bits, with one step for each row and group of input features, so that integer dot products
   sum exactly. */

typedef struct { /* of one row and one group */
    float step; /* the value of 1 in the rounded numbers */
    float sum;  /* of the numbers before rounding */
    float zero; /* -7.5 times the sum of the rounded numbers */
} Part;

enum {
    OUTPUTS = 32,
    INPUTS = 32,
    GROUP_VECTORS = OUTPUTS / LANES,
    INT4_BYTES = OUTPUTS * INPUTS / 2 + 2 * OUTPUTS, /* of a group */
    INT8_BYTES = OUTPUTS * INPUTS + OUTPUTS,
    GROUPED_AHEAD = 3072, /* prefetch distance in bytes */
    GROUPED_ROWS = 4,     /* rows that are computed together; their sums fill the registers */
};

/* Round one row's numbers of one group to -127..127; the step is NaN if one of them is not finite. */
static Part round_group(const Half *x, int8_t *rounded) {
    Half largest = 0; /* compared as bits: larger numbers have larger ones, and infinity has 0x7f80 */
    for (long i = 0; i < INPUTS; i++) {
        Half size = x[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    float sums[16], sum = 0;
    for (long j = 0; j < 16; j++)
        sums[j] = widened(x[j]) + widened(x[16 + j]);
    for (long j = 0; j < 16; j++)
        sum += sums[j];
    int known = largest >= 0x0d80 && largest < 0x7f80; /* below 2^-100 a number's inverse might overflow */
    float inverse = known ? 127 / widened(largest) : 0;
    int32_t total = 0;
    for (long i = 0; i < INPUTS; i++) {
        rounded[i] = known ? (int8_t)__builtin_rintf(widened(x[i]) * inverse) : 0;
        total += rounded[i];
    }
    float step = largest < 0x7f80 ? (known ? widened(largest) / 127 : 0) : __builtin_nanf("");
    return (Part){step, sum, -7.5f * total};
}

/* Compute output features of one block for `rows` rows of x, which are `k` apart, their parts `k / INPUTS`.

   `loads` vectors of every four input features are read, from `first` on: with 4 bits each has two vectors of output
   features. Fewer loads leave registers to more rows. */
INLINED void multiply_grouped(const int bits, const int rows, const int loads, int first, long n, long k,
                              const int8_t *x, const Part *parts, const uint8_t *packed, const float *factors,
                              Half *out) {
    const long size = bits == 4 ? INT4_BYTES : INT8_BYTES;
    Floats results[GROUPED_ROWS][GROUP_VECTORS];
    int place[GROUP_VECTORS]; /* of each vector in the block */
    for (int v = 0; v < 2 * loads; v++)
        place[v] = (first + v % loads + v / loads * (GROUP_VECTORS / 2)) * LANES;
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < 2 * loads; v++)
            results[row][v] = every(0);
    for (long g = 0; g < k / INPUTS; g++) {
        const uint8_t *here = packed + g * size, *scales = here + OUTPUTS * INPUTS * bits / 8;
        Ints sums[GROUPED_ROWS][GROUP_VECTORS], weights[GROUP_VECTORS];
        for (int row = 0; row < rows; row++)
            for (int v = 0; v < 2 * loads; v++)
                sums[row][v] = all(0);
        for (int quad = 0; quad < INPUTS / 4; quad++) {
            const uint8_t *four = here + quad * OUTPUTS * bits / 2;
            prefetch(four + GROUPED_AHEAD, OUTPUTS * bits / 2);
            if (bits == 4)
                for (int v = 0; v < loads; v++) {
                    Ints pairs = load(four + (first + v) * 4 * LANES);
                    weights[v] = both(pairs, all(0x0f0f0f0f));
                    weights[loads + v] = high_halves(pairs);
                }
            else
                for (int v = 0; v < 2 * loads; v++)
                    weights[v] = load(four + place[v] * 4);
            for (int row = 0; row < rows; row++) {
                int32_t numbers;
                memcpy(&numbers, x + row * k + g * INPUTS + 4 * quad, sizeof numbers);
                for (int v = 0; v < 2 * loads; v++)
                    sums[row][v] = bits == 4 ? add_small_products(sums[row][v], weights[v], all(numbers))
                                             : add_signed_products(sums[row][v], weights[v], all(numbers));
            }
        }
        for (int v = 0; v < 2 * loads; v++) {
            Floats offset = every(0);
            Floats scale = times(to_floats(from_unsigned_bytes(scales + place[v])), floats(factors + place[v]));
            if (bits == 4)
                offset = times(to_floats(from_bytes((const int8_t *)scales + OUTPUTS + place[v])),
                               floats(factors + n + place[v]));
            for (int row = 0; row < rows; row++) {
                const Part *part = parts + row * (k / INPUTS) + g;
                Floats whole = to_floats(bits == 4 ? small_totals(sums[row][v]) : sums[row][v]);
                if (bits == 4) {
                    whole = plus(whole, every(part->zero));
                    results[row][v] = times_plus(offset, every(part->sum), results[row][v]);
                }
                results[row][v] = times_plus(times(scale, every(part->step)), whole, results[row][v]);
            }
        }
    }
    for (int row = 0; row < rows; row++)
        for (int v = 0; v < 2 * loads; v++) {
            float whole[LANES];
            store(whole, results[row][v]);
            for (int i = 0; i < LANES; i++)
                out[row * n + place[v] + i] = narrowed(whole[i]);
        }
}

/* `multiply_grouped` with constants, so that sums stay in registers. */
#define GROUPED_TILE(bits, rows, loads)                                                                                \
    for (int first = 0; first < GROUP_VECTORS / 2; first += loads)                                                     \
        multiply_grouped(bits, rows, loads, first, n, k, x, parts, packed, factors, out);                              \
    break;
static void multiply_grouped_tile(int bits, int rows, long n, long k, const int8_t *x, const Part *parts,
                                  const uint8_t *packed, const float *factors, Half *out) {
    switch (bits * 10 + rows) {
    case 41: GROUPED_TILE(4, 1, GROUP_VECTORS / 2)
    case 42: GROUPED_TILE(4, 2, GROUP_VECTORS / 2)
    case 43: GROUPED_TILE(4, 3, 1)
    case 44: GROUPED_TILE(4, 4, 1)
    case 81: GROUPED_TILE(8, 1, GROUP_VECTORS / 2)
    case 82: GROUPED_TILE(8, 2, GROUP_VECTORS / 2)
    case 83: GROUPED_TILE(8, 3, 1)
    case 84: GROUPED_TILE(8, 4, 1)
    }
}

/* Multiply x [m, k] by weights packed in `bits` bits -> out [m, n], x and out in bfloat16; factors [2, n] are of scales
   and offsets, [1, n] with 8 bits. n is a multiple of OUTPUTS, k of INPUTS. Scratch: rounded [m, k], parts
   [m, k / INPUTS]. */
void NAMED(grouped_rows)(long threads, long bits, long m, long n, long k, const Half *x, const uint8_t *packed,
                         const float *factors, Half *out, int8_t *rounded, Part *parts) {
    long tiles = (m + GROUPED_ROWS - 1) / GROUPED_ROWS, size = bits == 4 ? INT4_BYTES : INT8_BYTES;
#pragma omp parallel num_threads(threads) if (m * n * k >= 200000)
    {
#pragma omp for schedule(static)
        for (long g = 0; g < m * k / INPUTS; g++)
            parts[g] = round_group(x + g * INPUTS, rounded + g * INPUTS);
#pragma omp for schedule(static)
        for (long first = 0; first < n; first += OUTPUTS)
            for (long tile = 0; tile < tiles; tile++) { /* the block stays in the cache */
                long row = m * tile / tiles, count = m * (tile + 1) / tiles - row;
                multiply_grouped_tile(bits, count, n, k, rounded + row * k, parts + row * (k / INPUTS),
                                      packed + first / OUTPUTS * (k / INPUTS) * size, factors + first, out + row * n + first);
            }
    }
}
