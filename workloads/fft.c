/* Transforms a vector forth and back, modulo a prime so that the result is exact: strided reads, a barrier a stage. */
#include "common.h"

#define PRIME 998244353u /* 119 * 2^23 + 1 */
#define ROOT 3u          /* generates its multiplicative group */

static const int LOG_POINTS[INPUTS] = {18, 20, 20};
static const int ROUNDS[INPUTS] = {10, 210, 1200};

static size_t points;
static uint32_t *values, *roots, *inverse_roots;

static uint32_t times(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b % PRIME);
}

static uint32_t power(uint32_t base, uint32_t exponent)
{
    uint32_t result = 1;
    for (; exponent; exponent >>= 1, base = times(base, base))
        if (exponent & 1)
            result = times(result, base);
    return result;
}

/* Decimation in frequency leaves the values in bit-reversed order; decimation in time, with the inverse roots, takes
 * them so: no reordering between the two. */
static void stage(size_t half, const uint32_t *powers, int forth, size_t first, size_t end)
{
    size_t step = points / (2 * half);
    for (size_t i = first; i < end; i++) {
        size_t k = i & (half - 1), low = ((i - k) << 1) + k, high = low + half;
        uint32_t root = powers[k * step];
        if (forth) {
            uint32_t a = values[low], b = values[high];
            values[low] = (a + b) % PRIME;
            values[high] = times(a + PRIME - b, root);
        } else {
            uint32_t a = values[low], b = times(values[high], root);
            values[low] = (a + b) % PRIME;
            values[high] = (a + PRIME - b) % PRIME;
        }
    }
}

static void body(int id)
{
    size_t first, end, start, stop;
    uint32_t scale = power((uint32_t)points, PRIME - 2);
    share_of(points / 2, id, &first, &end);
    share_of(points, id, &start, &stop);
    for (int round = 0; round < ROUNDS[input]; round++) {
        for (size_t half = points / 2; half; half /= 2, spin_and_meet())
            stage(half, roots, 1, first, end);
        for (size_t i = start; i < stop; i++)
            values[i] = times(times(values[i], values[i]), scale);
        spin_and_meet();
        for (size_t half = 1; half < points; half *= 2, spin_and_meet())
            stage(half, inverse_roots, 0, first, end);
    }
}

static void fill_powers(uint32_t *powers, uint32_t root)
{
    powers[0] = 1;
    for (size_t i = 1; i < points / 2; i++)
        powers[i] = times(powers[i - 1], root);
}

int main(int argc, char **argv)
{
    uint64_t checksum = 0;
    begin(argc, argv);
    need_power_of_two();
    points = (size_t)1 << LOG_POINTS[input];
    values = allocate(points, sizeof *values);
    roots = allocate(points / 2, sizeof *roots);
    inverse_roots = allocate(points / 2, sizeof *inverse_roots);
    fill_powers(roots, power(ROOT, (PRIME - 1) / (uint32_t)points));
    fill_powers(inverse_roots, power(power(ROOT, (PRIME - 1) / (uint32_t)points), PRIME - 2));
    for (size_t i = 0; i < points; i++)
        values[i] = (uint32_t)(mix(i) % PRIME);
    run_threads(body);
    for (size_t i = 0; i < points; i++)
        checksum += mix(i ^ ((uint64_t)values[i] << 32));
    return finish(checksum);
}
