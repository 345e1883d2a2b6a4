/* Multiply rows by bfloat16 weights, with sums in float32.

   Every output is summed over DEEP * GROUP input features at a time, always in the same order, so that a row's result
   is the same bits for any number of rows and threads.

   A vector holds 2 * LANES weights, two in each lane of 32 bits. A shift and a mask make two float32 vectors of them,
   one of the even and one of the odd features; the rows are brought into that order first.

   Weights can be packed into 12 bits without loss, since the exponents of neighbours are similar. A packed group of
   GROUP weights along a row has the low byte of each weight (the exponent's last bit and the mantissa), then half a
   byte for each: its sign, and its exponent's other bits minus the group's base, which is 7 below the largest of them
   (at least 0). A group whose exponents differ by more has the base RAW: its weights are stored unpacked in `raw`, and
   its packed bytes begin with their index there. */

enum {
    GROUP = 64,
    PACKED = 96, /* bytes of a packed group */
    RAW = 255,
    PAIRS = 2 * LANES,        /* bfloat16 numbers in a vector */
    VECTORS = GROUP / PAIRS,
    OUTS = 4,                 /* output features that are computed together */
    ROWS = LANES == 16 ? 6 : 3, /* rows that are computed together; their sums with OUTS fill the registers */
    SOME = 8,                 /* up to this many rows, and more than ROWS, PAIR output features are computed together */
    PAIR = 2,
    PAIR_ROWS = LANES == 16 ? 8 : 4, /* rows that are computed together with PAIR */
    PAIRS_AHEAD = 6,          /* prefetch distance in output features, of the same groups */
    DEEP = 12,                /* groups that are summed at a time */
    TOGETHER = 48,            /* rows that share a block's weights in the cache */
    FEW = 16,                 /* up to this many rows, weights are read row by row, in the order of memory */
    BLOCK = 32,               /* output features that share sums in the cache */
    SPAN = 200000,            /* bytes of weights that a thread takes at once for a single row */
    AHEAD = 2048,             /* prefetch distance in bytes */
};

typedef struct { /* [n, k]; if packed, k is a multiple of GROUP */
    const Half *plain;     /* NULL if packed */
    long stride;           /* between the rows of `plain`, in numbers */
    const uint8_t *packed; /* [n, k / GROUP, PACKED] */
    const uint8_t *bases;  /* [n, k / GROUP] */
    const Half *raw;       /* [groups without a base, GROUP] */
} Weights;

/* ---- Packing ---- */

/* The position of a group's i-th low byte, such that `merge_bytes` restores the order of its weights. */
INLINED int place_of(int i) {
    int within = i % PAIRS;
    return i / (2 * PAIRS) * (2 * PAIRS) + within / 8 * 16 + within % 8 + i / PAIRS % 2 * 8;
}

static int pack_group(const Half *from, uint8_t *to, uint8_t *base) {
    int lowest = 127, highest = 0;
    for (int i = 0; i < GROUP; i++) {
        int exponent = from[i] >> 8 & 127;
        lowest = exponent < lowest ? exponent : lowest;
        highest = exponent > highest ? exponent : highest;
    }
    int least_kept = highest > 7 ? highest - 7 : 0;
    *base = lowest < least_kept ? RAW : least_kept;
    memset(to, 0, PACKED);
    for (int i = 0; i < GROUP && *base != RAW; i++) {
        int place = place_of(i), half = place / (GROUP / 2) * 4;
        to[place] = from[i] & 255;
        to[GROUP + place % (GROUP / 2)] |= ((from[i] >> 12 & 8) | ((from[i] >> 8 & 127) - least_kept)) << half;
    }
    return *base == RAW;
}

/* Pack w [n, k]; `counts` [n] is the number of groups without a base in each row. */
void NAMED(pack)(long threads, long n, long k, const Half *w, uint8_t *packed, uint8_t *bases, int64_t *counts) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row++) {
        counts[row] = 0;
        for (long index = row * (k / GROUP); index < (row + 1) * (k / GROUP); index++)
            counts[row] += pack_group(w + index * GROUP, packed + index * PACKED, bases + index);
    }
}

/* Write the groups without a base to `raw`, one after the other; `firsts` [n] is the index of each row's first. */
void NAMED(keep_raw)(long threads, long n, long k, const Half *w, uint8_t *packed, const uint8_t *bases,
                     const int64_t *firsts, Half *raw) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row++) {
        int64_t here = firsts[row];
        for (long index = row * (k / GROUP); index < (row + 1) * (k / GROUP); index++)
            if (bases[index] == RAW) {
                memcpy(packed + index * PACKED, &here, sizeof here);
                memcpy(raw + here++ * GROUP, w + index * GROUP, GROUP * sizeof(Half));
            }
    }
}

/* High bytes by their group's base and their four bits, repeated for every 128 bits; see variants.c. */
extern uint8_t high_bytes[RAW][64] __attribute__((visibility("hidden")));

INLINED void unpack_group(const uint8_t *packed, Ints high, Ints out[VECTORS]) {
    Ints codes[VECTORS / 2];
    open_halves(packed + GROUP, codes);
    for (int i = 0; i < VECTORS / 2; i++)
        merge_bytes(load(packed + i * 2 * PAIRS), look_up(high, codes[i]), out + 2 * i);
}

/* ---- Products ---- */

/* Load a group of a row's weights; past the end of the row they are zero. */
INLINED void open_group(const int packed, const Weights *w, long k, long row, long group, Ints out[VECTORS]) {
    const Half *from;
    Half rest[GROUP];
    if (packed) {
        long index = row * (k / GROUP) + group;
        const uint8_t *here = w->packed + index * PACKED;
        if (w->bases[index] != RAW) {
            unpack_group(here, load(high_bytes[w->bases[index]]), out);
            return;
        }
        int64_t raw;
        memcpy(&raw, here, sizeof raw);
        from = w->raw + raw * GROUP;
        prefetch(from + 2 * GROUP, 2 * GROUP * sizeof(Half)); /* the next rows' are soon wanted */
    } else {
        long left = k - group * GROUP;
        from = w->plain + row * w->stride + group * GROUP;
        if (left < GROUP) {
            memset(rest, 0, sizeof rest);
            memcpy(rest, from, left * sizeof(Half));
            from = rest;
        }
    }
    for (int i = 0; i < VECTORS; i++)
        out[i] = load(from + i * PAIRS);
}

/* Prefetch what is AHEAD bytes after a group: in its row, or else in the row that this loop reads next. */
INLINED void prefetch_after(const int packed, const Weights *w, long k, long row, long group) {
    long bytes = packed ? PACKED : GROUP * (long)sizeof(Half);
    long all_bytes = packed ? k / GROUP * PACKED : w->stride * (long)sizeof(Half);
    long at = group * bytes + AHEAD;
    at += at < all_bytes ? 0 : (OUTS - 1) * all_bytes;
    prefetch((packed ? w->packed : (const uint8_t *)w->plain) + row * all_bytes + at, 128);
}

INLINED Floats even(Ints pairs) { return as_floats(shifted_up(pairs)); }
INLINED Floats odd(Ints pairs) { return as_floats(both(pairs, all((int32_t)0xffff0000))); }

/* Convert `count` groups of OUTS rows of weights to float32, in the order of x; rows are DEEP * GROUP apart. */
INLINED void widen(const int packed, const Weights *w, long k, const long rows[OUTS], long first, long count, int ahead,
                   float *to) {
    for (int i = 0; i < OUTS; i++)
        for (long g = 0; g < count; g++) {
            Ints pairs[VECTORS];
            if (ahead)
                prefetch_after(packed, w, k, rows[i], first + g);
            open_group(packed, w, k, rows[i], first + g, pairs);
            for (int v = 0; v < VECTORS; v++) {
                float *here = to + (i * DEEP + g) * GROUP + v * PAIRS;
                store(here, even(pairs[v]));
                store(here + LANES, odd(pairs[v]));
            }
        }
}

/* Add to `parts` the products of `rows` rows of x with stored weights. */
INLINED void multiply_stored(const int packed, const int rows, const Weights *w, long k, const long outs[OUTS],
                             long first, long count, const float *x, long width, Floats parts[ROWS][OUTS]) {
    for (long g = first; g < first + count; g++)
        for (int i = 0; i < OUTS; i++) {
            Ints pairs[VECTORS];
            prefetch_after(packed, w, k, outs[i], g);
            open_group(packed, w, k, outs[i], g, pairs);
            for (int v = 0; v < VECTORS; v++)
                for (int r = 0; r < rows; r++) {
                    const float *numbers = x + r * width + g * GROUP + v * PAIRS;
                    parts[r][i] = times_plus(even(pairs[v]), floats(numbers), parts[r][i]);
                    parts[r][i] = times_plus(odd(pairs[v]), floats(numbers + LANES), parts[r][i]);
                }
        }
}

/* Add to a sum the products of a group's weights with `numbers`. */
INLINED Floats add_group(const Ints pairs[VECTORS], const float *numbers, Floats sum) {
    for (int v = 0; v < VECTORS; v++) {
        sum = times_plus(even(pairs[v]), floats(numbers + v * PAIRS), sum);
        sum = times_plus(odd(pairs[v]), floats(numbers + v * PAIRS + LANES), sum);
    }
    return sum;
}

/* The same for one row and packed weights, with the bases of OUTS rows checked together: a quarter faster in the
   caches. */
INLINED void multiply_packed_row(const Weights *w, long k, const long outs[OUTS], long first, long count, const float *x,
                                 Floats parts[OUTS]) {
    const uint8_t *at[OUTS], *bases[OUTS];
    for (int i = 0; i < OUTS; i++) {
        long index = outs[i] * (k / GROUP) + first;
        at[i] = w->packed + index * PACKED;
        bases[i] = w->bases + index;
    }
    long all_bytes = k / GROUP * PACKED;
    for (long g = 0; g < count; g++) {
        const float *numbers = x + (first + g) * GROUP;
        Ints pairs[VECTORS], high[OUTS];
        long ahead = AHEAD + ((first + g) * PACKED + AHEAD < all_bytes ? 0 : (OUTS - 1) * all_bytes);
        int own[OUTS], raw = 0;
        for (int i = 0; i < OUTS; i++) {
            own[i] = bases[i][g];
            raw |= own[i] == RAW;
            prefetch(at[i] + ahead, 128);
        }
        if (__builtin_expect(raw, 0)) {
            for (int i = 0; i < OUTS; i++) {
                open_group(1, w, k, outs[i], first + g, pairs);
                parts[i] = add_group(pairs, numbers, parts[i]);
            }
        } else {
            for (int i = 0; i < OUTS; i++)
                high[i] = load(high_bytes[own[i]]);
            for (int i = 0; i < OUTS; i++) {
                unpack_group(at[i], high[i], pairs);
                parts[i] = add_group(pairs, numbers, parts[i]);
            }
        }
        for (int i = 0; i < OUTS; i++)
            at[i] += PACKED;
    }
}

/* The same, in the same order, with weights converted by `widen`. */
INLINED void multiply_wide(const int rows, const float *wide, long first, long count, const float *x, long width,
                           Floats parts[ROWS][OUTS]) {
    for (long at = 0; at < count * GROUP; at += LANES) {
        Floats numbers[ROWS];
        for (int r = 0; r < rows; r++)
            numbers[r] = floats(x + r * width + first * GROUP + at);
        for (int i = 0; i < OUTS; i++) {
            Floats weights = floats(wide + i * DEEP * GROUP + at);
            for (int r = 0; r < rows; r++)
                parts[r][i] = times_plus(weights, numbers[r], parts[r][i]);
        }
    }
}

/* Return where groups are that are PAIRS_AHEAD output features after `row`, of those from `begin` to `end`: after the
   last come the next groups of the first. */
INLINED const uint8_t *groups_ahead(const int packed, const Weights *w, long k, long row, long begin, long end, long first) {
    long bytes = packed ? PACKED : GROUP * (long)sizeof(Half);
    long all_bytes = packed ? k / GROUP * PACKED : w->stride * (long)sizeof(Half);
    const uint8_t *start = packed ? w->packed : (const uint8_t *)w->plain;
    row += PAIRS_AHEAD;
    if (row >= end) {
        row += begin - end;
        first += DEEP;
        if (first * GROUP >= k) {
            row += end - begin;
            first = 0;
        }
    }
    return start + row * all_bytes + first * bytes;
}

typedef struct {                /* groups of the weights of PAIR output features */
    const Half *plain[PAIR];    /* in the order of memory; `room` where they have to be unpacked first */
    Half room[PAIR][DEEP * GROUP] __attribute__((aligned(64)));
    const uint8_t *ahead[PAIR]; /* what to prefetch, `bytes` for each group */
    long rows[PAIR], first, count, bytes;
} Pair;

/* Unpack the groups into `room`. */
INLINED void open_pair(const int packed, const Weights *w, long k, Pair *pair) {
    for (int i = 0; i < PAIR; i++)
        for (long g = 0; g < pair->count; g++) {
            Ints pairs[VECTORS];
            prefetch(pair->ahead[i] + g * pair->bytes, 128);
            open_group(packed, w, k, pair->rows[i], pair->first + g, pairs);
            memcpy(pair->room[i] + g * GROUP, pairs, sizeof pairs);
        }
}

/* Add to sums, of `rows` rows and PAIR output features, the products over the groups, in the order of `multiply_tile`. */
INLINED void multiply_pair(const int fetches, const int rows, const Pair *pair, const float *x, long width,
                           float *sums) {
    Floats parts[PAIR_ROWS][PAIR];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < PAIR; i++)
            parts[r][i] = every(0);
    for (long g = 0; g < pair->count; g++) {
        if (fetches)
            for (int i = 0; i < PAIR; i++)
                prefetch(pair->ahead[i] + g * pair->bytes, 128);
        for (int v = 0; v < VECTORS; v++)
            for (int half = 0; half < 2; half++) {
                Floats wide[PAIR];
                for (int i = 0; i < PAIR; i++) {
                    Ints pairs = load(pair->plain[i] + g * GROUP + v * PAIRS);
                    wide[i] = half ? odd(pairs) : even(pairs);
                }
                for (int r = 0; r < rows; r++) {
                    Floats numbers = floats(x + r * width + g * GROUP + v * PAIRS + half * LANES);
                    for (int i = 0; i < PAIR; i++)
                        parts[r][i] = times_plus(wide[i], numbers, parts[r][i]);
                }
            }
    }
    for (int r = 0; r < rows; r++) {
        const Floats twice[4] = {parts[r][0], parts[r][1], parts[r][0], parts[r][1]};
        float whole[4];
        _mm_storeu_ps(whole, totals(twice));
        for (int i = 0; i < PAIR; i++)
            sums[r * BLOCK + i] += whole[i];
    }
}

/* `multiply_pair` with a constant number of rows. */
INLINED void multiply_pair_rows(const int fetches, int rows, const Pair *pair, const float *x, long width, float *sums) {
    switch (rows) {
    case 2: multiply_pair(fetches, 2, pair, x, width, sums); break;
    case 3: multiply_pair(fetches, 3, pair, x, width, sums); break;
    case 4: multiply_pair(fetches, 4, pair, x, width, sums); break;
#ifdef WITH_AVX512
    case 7: multiply_pair(fetches, 7, pair, x, width, sums); break;
    case 8: multiply_pair(fetches, 8, pair, x, width, sums); break;
#endif
    }
}

/* `multiply_block` for up to SOME rows: what they need of x stays in the fastest cache for all output features. */
INLINED void multiply_some(const int packed, long m, long k, long begin, long end, const float *x, long width,
                           const Weights *w, float *sums) {
    Pair pair = {.bytes = packed ? PACKED : GROUP * sizeof(Half)};
    long groups = width / GROUP, tiles = (m + PAIR_ROWS - 1) / PAIR_ROWS;
    for (long first = 0; first < groups; first += DEEP)
        for (long o = begin; o < end; o += PAIR) {
            pair.first = first;
            pair.count = least(DEEP, groups - first);
            int opens = packed || (first + pair.count) * GROUP > k;
            for (int i = 0; i < PAIR; i++) {
                long row = pair.rows[i] = least(o + i, end - 1);
                pair.ahead[i] = groups_ahead(packed, w, k, row, begin, end, first);
                pair.plain[i] = opens ? pair.room[i] : w->plain + row * w->stride + first * GROUP;
            }
            if (opens)
                open_pair(packed, w, k, &pair);
            for (long t = 0; t < tiles; t++) {
                long row = m * t / tiles, rows = m * (t + 1) / tiles - row;
                const float *from = x + row * width + first * GROUP;
                float *to = sums + row * BLOCK + (o - begin);
                if (opens || t > 0)
                    multiply_pair_rows(0, rows, &pair, from, width, to);
                else
                    multiply_pair_rows(1, rows, &pair, from, width, to);
            }
        }
}

/* Add to sums, of `rows` rows and OUTS output features, the products over `count` groups; `wide` may be NULL. */
INLINED void multiply_tile(const int packed, const int rows, const Weights *w, long k, const long outs[OUTS], long first,
                           long count, const float *wide, const float *x, long width, float *sums) {
    Floats parts[ROWS][OUTS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < OUTS; i++)
            parts[r][i] = every(0);
    if (wide)
        multiply_wide(rows, wide, first, count, x, width, parts);
    else if (packed && rows == 1)
        multiply_packed_row(w, k, outs, first, count, x, parts[0]);
    else
        multiply_stored(packed, rows, w, k, outs, first, count, x, width, parts);
    for (int r = 0; r < rows; r++) {
        float *to = sums + r * BLOCK;
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), totals(parts[r])));
    }
}

/* `multiply_tile` with a constant number of rows, so that sums stay in registers. */
INLINED void multiply_rows(const int packed, int rows, const Weights *w, long k, const long outs[OUTS], long first,
                           long count, const float *wide, const float *x, long width, float *sums) {
    switch (rows) {
    case 1: multiply_tile(packed, 1, w, k, outs, first, count, wide, x, width, sums); break;
    case 2: multiply_tile(packed, 2, w, k, outs, first, count, wide, x, width, sums); break;
    case 3: multiply_tile(packed, 3, w, k, outs, first, count, wide, x, width, sums); break;
#ifdef WITH_AVX512
    case 4: multiply_tile(packed, 4, w, k, outs, first, count, wide, x, width, sums); break;
    case 5: multiply_tile(packed, 5, w, k, outs, first, count, wide, x, width, sums); break;
    case 6: multiply_tile(packed, 6, w, k, outs, first, count, wide, x, width, sums); break;
#endif
    }
}

/* Multiply x [m, width] in float32, m at most TOGETHER, by output features `begin` to `end`, at most BLOCK
   -> out [m, n]. */
INLINED void multiply_block(const int packed, long m, long n, long k, long begin, long end, const float *x, long width,
                            const Weights *w, Half *out) {
    float sums[TOGETHER * BLOCK], wide[OUTS * DEEP * GROUP] __attribute__((aligned(64)));
    long step = m <= FEW ? OUTS : BLOCK, groups = width / GROUP, tiles = (m + ROWS - 1) / ROWS;
    memset(sums, 0, m * BLOCK * sizeof(float));
    if (m > ROWS && m <= SOME)
        multiply_some(packed, m, k, begin, end, x, width, w, sums);
    else for (long pass = begin; pass < end; pass += step)
        for (long first = 0; first < groups; first += DEEP)
            for (long o = pass; o < least(pass + step, end); o += OUTS) {
                long outs[OUTS], count = least(DEEP, groups - first);
                for (int i = 0; i < OUTS; i++)
                    outs[i] = least(o + i, end - 1);
                if (tiles > 1)
                    widen(packed, w, k, outs, first, count, m <= FEW, wide);
                for (long t = 0; t < tiles; t++) { /* of equal sizes, or one row more */
                    long row = m * t / tiles, rows = m * (t + 1) / tiles - row;
                    const float *from = tiles > 1 ? wide : NULL;
                    float *to = sums + row * BLOCK + (o - begin);
                    multiply_rows(packed, rows, w, k, outs, first, count, from, x + row * width, width, to);
                }
            }
    for (long row = 0; row < m; row++)
        for (long o = begin; o < end; o++)
            out[row * n + o] = narrowed(sums[row * BLOCK + o - begin]);
}

static void multiply_plain(long m, long n, long k, long begin, long end, const float *x, long width, const Weights *w,
                           Half *out) {
    multiply_block(0, m, n, k, begin, end, x, width, w, out);
}

static void multiply_packed(long m, long n, long k, long begin, long end, const float *x, long width, const Weights *w,
                            Half *out) {
    multiply_block(1, m, n, k, begin, end, x, width, w, out);
}

/* Convert a row of x to float32, each vector's even numbers before its odd ones, with zeros up to `width`. */
static void widen_row(const Half *x, long k, long width, float *to) {
    for (long i = 0; i < width; i++)
        to[i / PAIRS * PAIRS + i % 2 * LANES + i % PAIRS / 2] = i < k ? widened(x[i]) : 0;
}

/* Multiply x [heads, m, k] by w [n, k] of each head -> out [heads, m, n]; plain weights of heads are `next` numbers
   apart. Scratch: numbers [heads, m, k rounded up to GROUP]. */
void NAMED(bfloat16_rows)(long threads, long heads, long m, long n, long k, const Half *x, const Weights *w, long next,
                          Half *out, float *numbers) {
    long width = (k + GROUP - 1) / GROUP * GROUP, block_bytes = BLOCK * k * (long)sizeof(Half);
    long blocks = m == 1 ? 1 + least(SPAN / block_bytes, n / (BLOCK * threads * 8)) : 1, span = blocks * BLOCK;
#pragma omp parallel num_threads(threads) if (heads * m * n * k >= 200000)
    {
#pragma omp for schedule(static)
        for (long row = 0; row < heads * m; row++)
            widen_row(x + row * k, k, width, numbers + row * width);
#pragma omp for schedule(dynamic) collapse(3)
        for (long head = 0; head < heads; head++)
            for (long start = 0; start < n; start += span)
                for (long row = 0; row < m; row += TOGETHER)
                    for (long first = start; first < least(start + span, n); first += BLOCK) {
                        Weights own = *w;
                        long index = head * m + row, rows = least(TOGETHER, m - row), end = least(n, first + BLOCK);
                        const float *here = numbers + index * width;
                        if (own.plain) {
                            own.plain += head * next;
                            multiply_plain(rows, n, k, first, end, here, width, &own, out + index * n);
                        } else {
                            multiply_packed(rows, n, k, first, end, here, width, &own, out + index * n);
                        }
                    }
    }
}
