/* Anneals the placement of a netlist: random reads all over a large array, nearly nothing to compute between them.
 *
 * In each step element i is paired with i ^ key, so that pairs are disjoint and every thread may work on any of them.
 * A pair looks at the places of its neighbours as they were before the step.
 */
#include "common.h"

#define FAN_OUT 6

static const int LOG_ELEMENTS[INPUTS] = {19, 22, 22};
static const int STEPS[INPUTS] = {7, 16, 92};

static size_t elements;
static uint32_t (*neighbours)[FAN_OUT];
static uint32_t *before, *after; /* places: x in the low 16 bits, y in the high ones */
static atomic_size_t next;
static atomic_uint_least64_t swaps;

static int64_t distance(uint32_t a, uint32_t b)
{
    return labs((long)(a & 0xffff) - (long)(b & 0xffff)) + labs((long)(a >> 16) - (long)(b >> 16));
}

static int64_t gain_of_swap(size_t a, size_t b)
{
    int64_t gain = 0;
    for (int k = 0; k < FAN_OUT; k++) {
        uint32_t of_a = before[neighbours[a][k]], of_b = before[neighbours[b][k]];
        gain += distance(before[a], of_a) - distance(before[b], of_a);
        gain += distance(before[b], of_b) - distance(before[a], of_b);
    }
    return gain;
}

static void body(int id)
{
    (void)id;
    for (int step = 0; step < STEPS[input]; step++) {
        size_t first, end, key = mix((uint64_t)step) % (elements - 1) + 1;
        uint64_t stride = mix((uint64_t)step + 1000) | 1, mine = 0;
        int64_t temperature = 40000 / (step + 1);
        while (take(&next, elements, 4096, &first, &end))
            for (size_t i = first; i < end; i++) {
                size_t a = (i * stride) & (elements - 1), b = a ^ key;
                if (a > b)
                    continue;
                int swap = gain_of_swap(a, b) + (int64_t)(mix(a * 31 + (uint64_t)step) % 1024) * temperature / 1024 > 0;
                after[a] = swap ? before[b] : before[a];
                after[b] = swap ? before[a] : before[b];
                mine += (uint64_t)swap;
            }
        atomic_fetch_add(&swaps, mine);
        if (meet()) {
            uint32_t *old = before;
            before = after;
            after = old;
            next = 0;
        }
        meet();
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    elements = (size_t)1 << LOG_ELEMENTS[input];
    neighbours = allocate(elements, sizeof *neighbours);
    before = allocate(elements, sizeof *before);
    after = allocate(elements, sizeof *after);
    for (size_t i = 0; i < elements; i++) {
        before[i] = (uint32_t)mix(i);
        for (int k = 0; k < FAN_OUT; k++)
            neighbours[i][k] = (uint32_t)(mix(i * 8 + (size_t)k + (1u << 30)) & (elements - 1));
    }
    run_threads(body);
    uint64_t checksum = swaps;
    for (size_t i = 0; i < elements; i++)
        checksum += mix(i ^ ((uint64_t)before[i] << 32));
    return finish(checksum);
}
