/* Blurs, corrects and sharpens images tile by tile: what a tile needs stays in the first-level cache. */
#include "common.h"

#define SIDE 1024 /* of the image, in pixels */
#define TILE 32
#define BLUR 2 /* radius */
#define SHARPEN 1
#define BLURRED (TILE + 2 * SHARPEN)
#define READ (BLURRED + 2 * BLUR)
#define TILES ((SIDE / TILE) * (SIDE / TILE))

static const int IMAGES[INPUTS] = {20, 1900, 10600};
static const int WEIGHTS[2 * BLUR + 1] = {1, 4, 6, 4, 1}; /* their sum is 16 */

static uint8_t (*image)[SIDE];
static uint8_t gamma_table[256];
static atomic_size_t next;
static atomic_uint_least64_t checksum;

static void read_tile(uint8_t tile[READ][READ], size_t row, size_t column, uint8_t shade)
{
    for (size_t r = 0; r < READ; r++)
        for (size_t c = 0; c < READ; c++)
            tile[r][c] = image[(row + r) % SIDE][(column + c) % SIDE] ^ shade;
}

static void blur(uint8_t tile[READ][READ], uint8_t blurred[BLURRED][BLURRED])
{
    int rows[BLURRED][READ];
    for (int r = 0; r < BLURRED; r++)
        for (int c = 0; c < READ; c++) {
            rows[r][c] = 0;
            for (int k = 0; k <= 2 * BLUR; k++)
                rows[r][c] += WEIGHTS[k] * tile[r + k][c];
        }
    for (int r = 0; r < BLURRED; r++)
        for (int c = 0; c < BLURRED; c++) {
            int sum = 0;
            for (int k = 0; k <= 2 * BLUR; k++)
                sum += WEIGHTS[k] * rows[r][c + k];
            blurred[r][c] = gamma_table[sum / 256];
        }
}

static uint64_t sharpen(uint8_t blurred[BLURRED][BLURRED])
{
    uint64_t sum = 0;
    for (int r = SHARPEN; r < BLURRED - SHARPEN; r++)
        for (int c = SHARPEN; c < BLURRED - SHARPEN; c++) {
            int sharp = 5 * blurred[r][c] - blurred[r - 1][c] - blurred[r + 1][c] - blurred[r][c - 1] - blurred[r][c + 1];
            sum += (uint64_t)(sharp < 0 ? 0 : sharp > 255 ? 255 : sharp) * (uint64_t)(r * 64 + c);
        }
    return sum;
}

static void body(int id)
{
    uint8_t tile[READ][READ], blurred[BLURRED][BLURRED];
    size_t first, end, total = (size_t)IMAGES[input] * TILES;
    uint64_t mine = 0;
    (void)id;
    while (take(&next, total, SIDE / TILE, &first, &end))
        for (size_t i = first; i < end; i++) {
            size_t place = i % TILES;
            read_tile(tile, place / (SIDE / TILE) * TILE, place % (SIDE / TILE) * TILE, (uint8_t)(i / TILES));
            blur(tile, blurred);
            mine += mix(i ^ (sharpen(blurred) << 32));
        }
    atomic_fetch_add(&checksum, mine);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    image = allocate(SIDE, sizeof *image);
    for (unsigned i = 0; i < 256; i++)
        gamma_table[i] = (uint8_t)((i * i + 255 * i) / 510);
    for (size_t r = 0; r < SIDE; r++)
        for (size_t c = 0; c < SIDE; c++)
            image[r][c] = (uint8_t)(((r * c) >> 8) + (mix(r * SIDE + c) & 31));
    run_threads(body);
    return finish(checksum);
}
