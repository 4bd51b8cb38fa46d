/* A log-bucketed histogram of nanoseconds: 128 buckets to the octave, so that a quantile is within 0.4 %. */
#ifndef COLOCATE_HISTOGRAM_H
#define COLOCATE_HISTOGRAM_H

#include <math.h>
#include <stdint.h>

enum { OCTAVE = 128, BUCKETS = 34 * OCTAVE };
static const int64_t LONGEST_NS = (INT64_C(1) << 40) - 1;

struct histogram {
    uint64_t count;
    double sum, squares;
    int64_t least, most;
    uint32_t bucket[BUCKETS];
};

static int bucket_of(int64_t ns)
{
    int shift = ns < 2 * OCTAVE ? 0 : 56 - __builtin_clzll((uint64_t)ns);
    return shift * OCTAVE + (int)(ns >> shift);
}

static int64_t middle_of(int bucket)
{
    int shift = bucket < 2 * OCTAVE ? 0 : bucket / OCTAVE - 1;
    return ((int64_t)(bucket - shift * OCTAVE) << shift) + ((INT64_C(1) << shift) >> 1);
}

static void record(struct histogram *h, int64_t ns, uint64_t times)
{
    if (!times)
        return;
    ns = ns < 0 ? 0 : ns > LONGEST_NS ? LONGEST_NS : ns;
    if (!h->count || ns < h->least)
        h->least = ns;
    if (ns > h->most)
        h->most = ns;
    h->count += times;
    h->sum += (double)ns * (double)times;
    h->squares += (double)ns * (double)ns * (double)times;
    h->bucket[bucket_of(ns)] += (uint32_t)times;
}

static void merge(struct histogram *into, const struct histogram *from)
{
    if (!from->count)
        return;
    if (!into->count || from->least < into->least)
        into->least = from->least;
    if (from->most > into->most)
        into->most = from->most;
    into->count += from->count;
    into->sum += from->sum;
    into->squares += from->squares;
    for (int i = 0; i < BUCKETS; i++)
        into->bucket[i] += from->bucket[i];
}

/* The q-quantile (0 to 1) in ns; 0 where nothing was recorded. */
static int64_t quantile(const struct histogram *h, double q)
{
    uint64_t rank = (uint64_t)ceil(q * (double)h->count), seen = 0;
    if (!h->count)
        return 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->bucket[i]) >= rank && seen) {
            int64_t ns = middle_of(i);
            return ns < h->least ? h->least : ns > h->most ? h->most : ns;
        }
    return h->most;
}

static double deviation(const struct histogram *h)
{
    double mean = h->count ? h->sum / (double)h->count : 0;
    double variance = h->count ? h->squares / (double)h->count - mean * mean : 0;
    return variance > 0 ? sqrt(variance) : 0;
}

/* How many were above `ns`, to the width of a bucket. */
static uint64_t above(const struct histogram *h, int64_t ns)
{
    uint64_t count = 0;
    for (int i = bucket_of(ns) + 1; i < BUCKETS; i++)
        count += h->bucket[i];
    return count;
}

#endif
