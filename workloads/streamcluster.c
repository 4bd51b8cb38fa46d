/* Clusters a stream of points: each candidate centre costs one pass over all points in memory, between barriers.
 *
 * A pass takes about half a millisecond, and whoever waits spins for a while before it sleeps, as the barrier of the
 * real program does: so a thread without a core of its own holds up the others, and they it.
 */
#include "common.h"

#define POINTS 16384
#define DIMENSIONS 128
#define CANDIDATES 256 /* for each block of the stream */
#define OPENING_COST (1 << 24)

static const int BLOCKS[INPUTS] = {1, 84, 480};

static int16_t (*points)[DIMENSIONS];
static int32_t *cost, *candidate_cost; /* squared distance to the centre of now, and to the candidate */
static int64_t gains[MAX_THREADS];
static int opens;
static uint64_t checksum;

static int32_t squared_distance(const int16_t *a, const int16_t *b)
{
    int32_t sum = 0;
    for (int d = 0; d < DIMENSIONS; d++) {
        int32_t difference = a[d] - b[d];
        sum += difference * difference;
    }
    return sum;
}

static void read_block(int block, size_t first, size_t end)
{
    for (size_t p = first; p < end; p++) {
        for (size_t d = 0; d < DIMENSIONS; d += 4) {
            uint64_t bits = mix(((uint64_t)block << 32) + p * DIMENSIONS + d);
            for (size_t k = 0; k < 4; k++)
                points[p][d + k] = (int16_t)((bits >> (16 * k)) & 0x1ff);
        }
        cost[p] = INT32_MAX;
    }
}

static int64_t gain_of(const int16_t *candidate, size_t first, size_t end)
{
    int64_t gain = 0;
    for (size_t p = first; p < end; p++) {
        candidate_cost[p] = squared_distance(points[p], candidate);
        if (candidate_cost[p] < cost[p])
            gain += cost[p] - candidate_cost[p];
    }
    return gain;
}

static void body(int id)
{
    size_t first, end;
    share_of(POINTS, id, &first, &end);
    for (int block = 0; block < BLOCKS[input]; block++) {
        read_block(block, first, end);
        spin_and_meet();
        for (int c = 0; c < CANDIDATES; c++) {
            size_t candidate = mix((uint64_t)block * CANDIDATES + (uint64_t)c) % POINTS;
            gains[id] = gain_of(points[candidate], first, end);
            if (spin_and_meet()) {
                int64_t gain = -OPENING_COST;
                for (int t = 0; t < threads; t++)
                    gain += gains[t];
                opens = gain > 0;
                checksum += opens ? mix((uint64_t)gain ^ candidate) : 0;
            }
            spin_and_meet();
            for (size_t p = first; opens && p < end; p++)
                if (candidate_cost[p] < cost[p])
                    cost[p] = candidate_cost[p];
        }
        spin_and_meet();
    }
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    points = allocate(POINTS, sizeof *points);
    cost = allocate(POINTS, sizeof *cost);
    candidate_cost = allocate(POINTS, sizeof *candidate_cost);
    run_threads(body);
    for (size_t p = 0; p < POINTS; p++)
        checksum += mix(p ^ ((uint64_t)(uint32_t)cost[p] << 32));
    return finish(checksum);
}
