/* Moves bodies under their gravity by the method of Barnes and Hut: in each step one thread builds the tree, then all
 * walk it. A body's sum is one thread's, in the order of the tree, so that the result is the same to the last bit.
 */
#include <math.h>

#include "common.h"

#define BODIES 8192
#define CHUNK 64
#define NODES (4 * BODIES)
#define MAX_DEPTH 40
#define OPENING 0.25 /* the square of the angle under which a cell counts as one body */
#define SOFTENING 1e-4
#define STEP 1e-3

static const int STEPS[INPUTS] = {3, 250, 1400};

static struct body {
    double position[3], velocity[3], mass;
} *bodies;

/* A cell or, where `children` is all zero, a leaf that holds the bodies of a chain. */
static struct node {
    double centre[3], mass, half; /* the centre is the cell's while the tree grows, then that of its mass */
    int children[8], first_body;
} *nodes;
static int *next_body; /* the chain; the last links to -1 */
static int used;
static atomic_size_t next;

static int new_node(const double *centre, double half)
{
    if (used == NODES)
        die(1, "the tree is too large");
    nodes[used] = (struct node){.centre = {centre[0], centre[1], centre[2]}, .half = half, .first_body = -1};
    return used++;
}

static int child_for(int parent, const double *position)
{
    struct node *node = &nodes[parent];
    int octant = 0;
    double centre[3];
    for (int d = 0; d < 3; d++) {
        int high = position[d] >= node->centre[d];
        octant |= high << d;
        centre[d] = node->centre[d] + (high ? 0.5 : -0.5) * node->half;
    }
    if (!node->children[octant])
        node->children[octant] = new_node(centre, 0.5 * node->half);
    return node->children[octant];
}

static int is_leaf(const struct node *node)
{
    for (int k = 0; k < 8; k++)
        if (node->children[k])
            return 0;
    return 1;
}

static void insert(int body)
{
    int at = 0;
    for (int depth = 0; depth < MAX_DEPTH; depth++) {
        if (is_leaf(&nodes[at])) {
            int other = nodes[at].first_body;
            if (other < 0)
                break;
            nodes[at].first_body = -1;
            nodes[child_for(at, bodies[other].position)].first_body = other;
        }
        at = child_for(at, bodies[body].position);
    }
    next_body[body] = nodes[at].first_body;
    nodes[at].first_body = body;
}

static void sum_up(int at)
{
    struct node *node = &nodes[at];
    double mass = 0, moment[3] = {0, 0, 0};
    for (int b = node->first_body; b >= 0; b = next_body[b]) {
        mass += bodies[b].mass;
        for (int d = 0; d < 3; d++)
            moment[d] += bodies[b].mass * bodies[b].position[d];
    }
    for (int k = 0; k < 8; k++)
        if (node->children[k]) {
            const struct node *child = &nodes[node->children[k]];
            sum_up(node->children[k]);
            mass += child->mass;
            for (int d = 0; d < 3; d++)
                moment[d] += child->mass * child->centre[d];
        }
    node->mass = mass;
    for (int d = 0; d < 3; d++)
        node->centre[d] = moment[d] / mass;
}

static void build_tree(void)
{
    double half = 1, origin[3] = {0, 0, 0};
    for (int b = 0; b < BODIES; b++)
        for (int d = 0; d < 3; d++)
            half = fmax(half, fabs(bodies[b].position[d]));
    used = 0;
    new_node(origin, half);
    for (int b = 0; b < BODIES; b++)
        insert(b);
    sum_up(0);
}

static void pull(int at, const double *position, double *acceleration)
{
    const struct node *node = &nodes[at];
    double away[3], square = SOFTENING;
    for (int d = 0; d < 3; d++) {
        away[d] = node->centre[d] - position[d];
        square += away[d] * away[d];
    }
    if (node->first_body < 0 && 4 * node->half * node->half >= OPENING * square) {
        for (int k = 0; k < 8; k++)
            if (node->children[k])
                pull(node->children[k], position, acceleration);
        return;
    }
    double strength = node->mass / (square * sqrt(square));
    for (int d = 0; d < 3; d++)
        acceleration[d] += strength * away[d];
}

static void body(int id)
{
    size_t first, end;
    for (int step = 0; step < STEPS[input]; step++) {
        if (meet()) {
            build_tree();
            next = 0;
        }
        meet();
        while (take(&next, BODIES, CHUNK, &first, &end))
            for (size_t b = first; b < end; b++) {
                double acceleration[3] = {0, 0, 0};
                pull(0, bodies[b].position, acceleration);
                for (int d = 0; d < 3; d++)
                    bodies[b].velocity[d] += STEP * acceleration[d];
            }
        meet();
        share_of(BODIES, id, &first, &end);
        for (size_t b = first; b < end; b++)
            for (int d = 0; d < 3; d++)
                bodies[b].position[d] += STEP * bodies[b].velocity[d];
    }
}

int main(int argc, char **argv)
{
    uint64_t checksum = 0;
    begin(argc, argv);
    bodies = allocate(BODIES, sizeof *bodies);
    nodes = allocate(NODES, sizeof *nodes);
    next_body = allocate(BODIES, sizeof *next_body);
    for (uint64_t b = 0; b < BODIES; b++) {
        bodies[b].mass = 1.0 / BODIES;
        for (uint64_t d = 0; d < 3; d++) /* denser towards the middle, so that the tree is uneven */
            bodies[b].position[d] = (double)((int64_t)mix(6 * b + d) >> 11) * 0x1p-52 * (double)(b + 1) / BODIES;
    }
    run_threads(body);
    for (size_t b = 0; b < BODIES; b++)
        for (size_t d = 0; d < 3; d++)
            checksum += mix((3 * b + d) ^ (uint64_t)(int64_t)(bodies[b].position[d] * 0x1p32));
    return finish(checksum);
}
