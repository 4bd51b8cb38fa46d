/* Sorts integers by their digits, over and over: memory bandwidth, with a few barriers for each digit. */
#include "common.h"

#define DIGIT_BITS 11
#define BUCKETS (1 << DIGIT_BITS)
#define KEY_BITS 32

static const int LOG_KEYS[INPUTS] = {20, 23, 23};
static const int ROUNDS[INPUTS] = {20, 95, 540};

static size_t keys;
static uint32_t *from, *to;
static size_t (*places)[BUCKETS]; /* by thread: how many of each digit, then where the next one goes */
static atomic_uint_least64_t checksum;

static void make_places(void)
{
    size_t place = 0;
    for (int digit = 0; digit < BUCKETS; digit++)
        for (int t = 0; t < threads; t++) {
            size_t count = places[t][digit];
            places[t][digit] = place;
            place += count;
        }
}

static void sort_by_digit(int id, int shift, size_t first, size_t end)
{
    memset(places[id], 0, sizeof places[id]);
    for (size_t i = first; i < end; i++)
        places[id][from[i] >> shift & (BUCKETS - 1)]++;
    if (meet())
        make_places();
    meet();
    for (size_t i = first; i < end; i++)
        to[places[id][from[i] >> shift & (BUCKETS - 1)]++] = from[i];
    if (meet()) {
        uint32_t *sorted = to;
        to = from;
        from = sorted;
    }
    meet();
}

static void body(int id)
{
    size_t first, end;
    share_of(keys, id, &first, &end);
    for (int round = 0; round < ROUNDS[input]; round++) {
        uint64_t sum = 0;
        for (size_t i = first; i < end; i++)
            from[i] = (uint32_t)mix(i + ((uint64_t)round << 32));
        for (int shift = 0; shift < KEY_BITS; shift += DIGIT_BITS)
            sort_by_digit(id, shift, first, end);
        for (size_t i = first; i < end; i++)
            sum += (i + 1) * from[i];
        atomic_fetch_add(&checksum, sum);
        meet();
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    need_power_of_two();
    keys = (size_t)1 << LOG_KEYS[input];
    from = allocate(keys, sizeof *from);
    to = allocate(keys, sizeof *to);
    places = allocate((size_t)threads, sizeof *places);
    run_threads(body);
    for (size_t i = 1; i < keys; i++)
        if (from[i - 1] > from[i])
            die(1, "key %zu is out of order", i);
    return finish(checksum);
}
