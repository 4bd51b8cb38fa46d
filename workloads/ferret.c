/* Looks up images by likeness, in a pipeline: one thread loads, -n threads extract features and -n rank, one writes;
 * between them bounded queues. Nearly all of the work is in ranking.
 */
#include "common.h"

#define ENTRIES 65536 /* in the database */
#define FEATURES 64
#define SIDE 64 /* of an image, in pixels */
#define BEST 10
#define WAITING 16 /* how many queries a queue holds */

static const int QUERIES[INPUTS] = {700, 80000, 440000};

struct query {
    int number;
    uint8_t image[SIDE][SIDE], features[FEATURES];
    uint32_t best[BEST]; /* distance << 16 | entry, ascending */
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t not_empty, not_full;
    struct query *waiting[WAITING];
    int first, count, writers;
};

static struct queue loaded, extracted, ranked;
static uint8_t (*database)[FEATURES];

static void open_queue(struct queue *queue, int writers)
{
    *queue = (struct queue){.writers = writers};
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->not_empty, NULL);
    pthread_cond_init(&queue->not_full, NULL);
}

static void put(struct queue *queue, struct query *query)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->count == WAITING)
        pthread_cond_wait(&queue->not_full, &queue->lock);
    queue->waiting[(queue->first + queue->count++) % WAITING] = query;
    pthread_cond_signal(&queue->not_empty);
    pthread_mutex_unlock(&queue->lock);
}

/* The next query, or NULL once all writers have left and nothing waits. */
static struct query *get(struct queue *queue)
{
    struct query *query = NULL;
    pthread_mutex_lock(&queue->lock);
    while (!queue->count && queue->writers)
        pthread_cond_wait(&queue->not_empty, &queue->lock);
    if (queue->count) {
        query = queue->waiting[queue->first];
        queue->first = (queue->first + 1) % WAITING;
        queue->count--;
        pthread_cond_signal(&queue->not_full);
    }
    pthread_mutex_unlock(&queue->lock);
    return query;
}

static void leave(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->writers--;
    pthread_cond_broadcast(&queue->not_empty);
    pthread_mutex_unlock(&queue->lock);
}

static void *load(void *unused)
{
    for (int number = 0; number < QUERIES[input]; number++) {
        struct query *query = allocate(1, sizeof *query);
        query->number = number;
        for (size_t i = 0; i < SIDE * SIDE; i += 8) {
            uint64_t bits = mix((uint64_t)number * SIDE * SIDE + i) & 0x3f3f3f3f3f3f3f3fu;
            memcpy(&query->image[0][0] + i, &bits, 8);
        }
        put(&loaded, query);
    }
    leave(&loaded);
    return unused;
}

/* A feature is the mean brightness of one of 8 x 8 fields, stretched by the edges in it. */
static void extract_features(struct query *query)
{
    for (int field = 0; field < FEATURES; field++) {
        int sum = 0, top = field / 8 * 8, left = field % 8 * 8;
        for (int r = top; r < top + 8; r++)
            for (int c = left; c < left + 8; c++)
                sum += query->image[r][c] + abs(query->image[r][c] - query->image[r][(c + 1) % SIDE]);
        query->features[field] = (uint8_t)(sum >> 4);
    }
}

static void *extract(void *unused)
{
    for (struct query *query; (query = get(&loaded)); put(&extracted, query))
        extract_features(query);
    leave(&extracted);
    return unused;
}

static void find_best(struct query *query)
{
    memset(query->best, 0xff, sizeof query->best);
    for (uint32_t entry = 0; entry < ENTRIES; entry++) {
        uint32_t distance = 0;
        for (int f = 0; f < FEATURES; f++)
            distance += (uint32_t)abs(query->features[f] - database[entry][f]);
        uint32_t candidate = distance << 16 | entry;
        for (int place = 0; candidate < query->best[BEST - 1] && place < BEST; place++)
            if (candidate < query->best[place]) {
                uint32_t worse = query->best[place];
                query->best[place] = candidate;
                candidate = worse;
            }
    }
}

static void *rank(void *unused)
{
    for (struct query *query; (query = get(&extracted)); put(&ranked, query))
        find_best(query);
    leave(&ranked);
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t loader, extractors[MAX_THREADS], rankers[MAX_THREADS];
    uint64_t checksum = 0;
    begin(argc, argv);
    database = allocate(ENTRIES, sizeof *database);
    for (size_t e = 0; e < ENTRIES; e++)
        for (size_t f = 0; f < FEATURES; f++)
            database[e][f] = (uint8_t)mix(e * FEATURES + f);
    open_queue(&loaded, 1);
    open_queue(&extracted, threads);
    open_queue(&ranked, threads);
    loader = start_thread(load, NULL);
    for (int t = 0; t < threads; t++) {
        extractors[t] = start_thread(extract, NULL);
        rankers[t] = start_thread(rank, NULL);
    }
    for (struct query *query; (query = get(&ranked)); free(query))
        for (int place = 0; place < BEST; place++)
            checksum += mix(((uint64_t)query->number << 40) ^ ((uint64_t)place << 32) ^ query->best[place]);
    pthread_join(loader, NULL);
    for (int t = 0; t < threads; t++) {
        pthread_join(extractors[t], NULL);
        pthread_join(rankers[t], NULL);
    }
    return finish(checksum);
}
