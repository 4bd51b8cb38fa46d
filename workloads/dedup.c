/* Compresses a stream that repeats itself: a block is read by one thread at a time, cut into chunks where its content
 * says so, each chunk hashed, looked up, compressed if new, and written by one thread at a time.
 */
#include "common.h"

#define BLOCK (1 << 18)
#define PHRASES 4096
#define PHRASE 1024
#define SMALLEST 1024
#define LARGEST 16384
#define CUT_MASK 0xfff /* a cut on average each 4 KB */
#define WINDOW 32
#define LOCKS 64
#define SLOTS_A_BLOCK 64 /* a chunk is 5 KB on average, so that a block has about 50 */
#define MATCHES (1 << 12)

static const int BLOCKS[INPUTS] = {150, 13000, 76000};

static uint8_t (*phrases)[PHRASE];
static uint64_t gear[256];
static uint64_t *seen; /* open addressing over the chunks' hashes, one part for each lock; 0 is a free slot */
static size_t part_size;
static pthread_mutex_t locks[LOCKS], source_lock = PTHREAD_MUTEX_INITIALIZER, output_lock = PTHREAD_MUTEX_INITIALIZER;
static int blocks_read;
static uint64_t written, checksum;

/* The serial start: returns the block's number, or -1 at the end of the stream. */
static int read_block(uint8_t *block)
{
    pthread_mutex_lock(&source_lock);
    int number = blocks_read < BLOCKS[input] ? blocks_read++ : -1;
    uint64_t seed = mix((uint64_t)number / 4); /* four blocks in a row are alike, but for some phrases */
    for (size_t k = 0; number >= 0 && k < BLOCK / PHRASE; k++) {
        uint64_t own = mix((uint64_t)number * 1024 + k), pick = own % 8 ? mix(seed + k) : own;
        memcpy(block + k * PHRASE, phrases[pick % PHRASES], PHRASE);
        memcpy(block + k * PHRASE + pick / PHRASES % (PHRASE - 8), &pick, 8);
    }
    pthread_mutex_unlock(&source_lock);
    return number;
}

static size_t chunk_length(const uint8_t *data, size_t left)
{
    size_t most = left < LARGEST ? left : LARGEST, at;
    uint64_t rolling = 0;
    if (most <= SMALLEST)
        return most;
    for (at = SMALLEST - WINDOW; at < SMALLEST; at++)
        rolling = (rolling << 1) + gear[data[at]];
    for (; at < most && (rolling >> 40 & CUT_MASK); at++)
        rolling = (rolling << 1) + gear[data[at]];
    return at;
}

static uint64_t hash_of(const uint8_t *data, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash | 1; /* never 0 */
}

static int is_new(uint64_t hash)
{
    size_t part = mix(hash) % LOCKS, slot = mix(hash + 1) % part_size, tried = 0;
    uint64_t *table = seen + part * part_size;
    pthread_mutex_lock(&locks[part]);
    while (table[slot] && table[slot] != hash && tried++ < part_size)
        slot = (slot + 1) % part_size;
    int fresh = table[slot] != hash;
    if (tried > part_size)
        die(1, "the table of chunks is full");
    table[slot] = hash;
    pthread_mutex_unlock(&locks[part]);
    return fresh;
}

/* Replace what stood at most 64 KB before by its distance and length; returns the length of the output. */
static size_t compress(const uint8_t *data, size_t length, uint8_t *out, uint16_t *last)
{
    size_t used = 0;
    memset(last, 0, MATCHES * sizeof *last);
    for (size_t i = 0; i < length;) {
        uint32_t four;
        if (i + 4 > length) {
            out[used++] = data[i++];
            continue;
        }
        memcpy(&four, data + i, 4);
        uint16_t *slot = &last[four * 2654435761u >> 20];
        size_t from = *slot, match = 0;
        *slot = (uint16_t)i;
        while (from < i && match < 255 && i + match < length && data[from + match] == data[i + match])
            match++;
        if (match < 4) {
            out[used++] = data[i++];
        } else {
            out[used++] = (uint8_t)match;
            out[used++] = (uint8_t)(i - from);
            out[used++] = (uint8_t)((i - from) >> 8);
            i += match;
        }
    }
    return used;
}

/* The serial end; a sum, since chunks arrive in any order. */
static void write_chunk(const uint8_t *data, size_t length)
{
    pthread_mutex_lock(&output_lock);
    written += length;
    checksum += hash_of(data, length);
    pthread_mutex_unlock(&output_lock);
}

static void body(int id)
{
    uint8_t *block = allocate(BLOCK, 1), *out = allocate(LARGEST, 1);
    uint16_t *last = allocate(MATCHES, sizeof *last);
    (void)id;
    while (read_block(block) >= 0)
        for (size_t at = 0, length; at < BLOCK; at += length) {
            length = chunk_length(block + at, BLOCK - at);
            if (is_new(hash_of(block + at, length)))
                write_chunk(out, compress(block + at, length, out, last));
        }
    free(block);
    free(out);
    free(last);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    phrases = allocate(PHRASES, sizeof *phrases);
    part_size = (size_t)BLOCKS[input] * SLOTS_A_BLOCK / LOCKS;
    seen = allocate(part_size * LOCKS, sizeof *seen);
    for (size_t p = 0; p < PHRASES; p++)
        for (size_t i = 0; i < PHRASE; i++)
            phrases[p][i] = (uint8_t)("etaoin shrdlu.\n,"[mix(p * PHRASE + i) & 15]);
    for (size_t i = 0; i < 256; i++)
        gear[i] = mix(i + 77);
    for (int i = 0; i < LOCKS; i++)
        pthread_mutex_init(&locks[i], NULL);
    run_threads(body);
    return finish(checksum ^ mix(written));
}
