/* Counts frequent item sets: one thread builds a prefix tree of all transactions, then all follow its pointers.
 *
 * For each item the paths from its nodes to the root are walked, and each pair of items above it is counted in a hash
 * table; the sets of three that occur often enough make the checksum.
 */
#include "common.h"

#define ITEMS 512 /* the lower, the more frequent */
#define LONGEST 20
#define TABLE_BITS 18 /* holds every pair of items */

static const int TRANSACTIONS[INPUTS] = {12000, 200000, 200000};
static const int LEVELS[INPUTS] = {12, 32, 180}; /* how many times all is mined, each time with a higher threshold */

struct node {
    uint32_t item, count, parent, next_of_item;
};
static struct node *nodes;
static uint32_t *child_of; /* open addressing over (parent, item); 0 is a free slot */
static uint32_t used = 1, slots, heads[ITEMS];
static atomic_size_t next;
static atomic_uint_least64_t checksum;

static uint32_t child(uint32_t parent, uint32_t item)
{
    uint32_t slot = (uint32_t)mix((uint64_t)parent << 16 | item) & (slots - 1);
    for (; child_of[slot]; slot = (slot + 1) & (slots - 1))
        if (nodes[child_of[slot]].parent == parent && nodes[child_of[slot]].item == item)
            return child_of[slot];
    nodes[used] = (struct node){.item = item, .parent = parent, .next_of_item = heads[item]};
    child_of[slot] = heads[item] = used;
    return used++;
}

static int ascending(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static void add_transaction(uint64_t number)
{
    uint32_t items[LONGEST], length = 4 + (uint32_t)(mix(number) % (LONGEST - 3)), at = 0;
    for (uint32_t k = 0; k < length; k++) {
        uint64_t bits = mix(number * 32 + k + (1ull << 40));
        items[k] = (uint32_t)((bits % ITEMS) * (bits >> 32 & 0xffff) >> 16) * ((bits >> 48 & 3) != 0);
    }
    qsort(items, length, sizeof *items, ascending);
    for (uint32_t k = 0; k < length; k++)
        if (k == 0 || items[k] != items[k - 1]) {
            at = child(at, items[k]);
            nodes[at].count++;
        }
}

static void mine_item(uint32_t item, uint32_t *pairs, uint32_t *touched, uint32_t threshold, uint64_t *sum)
{
    uint32_t found = 0;
    for (uint32_t leaf = heads[item]; leaf; leaf = nodes[leaf].next_of_item)
        for (uint32_t a = nodes[leaf].parent; a; a = nodes[a].parent)
            for (uint32_t b = nodes[a].parent; b; b = nodes[b].parent) {
                uint32_t pair = nodes[a].item * ITEMS + nodes[b].item;
                if (!pairs[pair])
                    touched[found++] = pair;
                pairs[pair] += nodes[leaf].count;
            }
    for (uint32_t k = 0; k < found; k++) {
        if (pairs[touched[k]] >= threshold)
            *sum += mix(((uint64_t)item << 32 | touched[k]) ^ ((uint64_t)pairs[touched[k]] << 44));
        pairs[touched[k]] = 0;
    }
}

static void body(int id)
{
    uint32_t *pairs = allocate(1u << TABLE_BITS, sizeof *pairs), *touched = allocate(1u << TABLE_BITS, sizeof *touched);
    size_t task, end, total = (size_t)LEVELS[input] * ITEMS;
    uint64_t sum = 0;
    (void)id;
    while (take(&next, total, 1, &task, &end))
        mine_item((uint32_t)(task % ITEMS), pairs, touched, 3 + (uint32_t)(task / ITEMS), &sum);
    atomic_fetch_add(&checksum, sum);
    free(pairs);
    free(touched);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    uint32_t most = (uint32_t)TRANSACTIONS[input] * LONGEST + 1;
    for (slots = 1; slots < 2 * most; slots *= 2)
        ;
    nodes = allocate(most, sizeof *nodes);
    child_of = allocate(slots, sizeof *child_of);
    for (int t = 0; t < TRANSACTIONS[input]; t++)
        add_transaction((uint64_t)t);
    run_threads(body);
    return finish(checksum);
}
