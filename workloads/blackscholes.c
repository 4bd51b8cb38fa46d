/* Prices European options by the formula of Black and Scholes: pure arithmetic, no sharing, one serial first part. */
#include <math.h>

#include "common.h"

#define OPTIONS 16384

static const int PASSES[INPUTS] = {200, 18000, 100000};

static struct option_data {
    double spot, strike, rate, volatility, years;
    int is_put;
} *options;
static double *prices;

static double normal_distribution(double x)
{
    return 0.5 * erfc(-x * 0.70710678118654752440);
}

static double price(const struct option_data *o, double rate)
{
    double root = o->volatility * sqrt(o->years);
    double d1 = (log(o->spot / o->strike) + (rate + 0.5 * o->volatility * o->volatility) * o->years) / root;
    double call = o->spot * normal_distribution(d1) - o->strike * exp(-rate * o->years) * normal_distribution(d1 - root);
    return o->is_put ? call - o->spot + o->strike * exp(-rate * o->years) : call;
}

static void body(int id)
{
    size_t first, end;
    share_of(OPTIONS, id, &first, &end);
    for (int pass = 0; pass < PASSES[input]; pass++)
        for (size_t i = first; i < end; i++)
            prices[i] = price(&options[i], options[i].rate + 1e-6 * pass);
}

static double between(double low, double high, uint64_t seed)
{
    return low + (high - low) * (double)(mix(seed) >> 11) * 0x1p-53;
}

int main(int argc, char **argv)
{
    uint64_t checksum = 0;
    begin(argc, argv);
    options = allocate(OPTIONS, sizeof *options);
    prices = allocate(OPTIONS, sizeof *prices);
    for (uint64_t i = 0; i < OPTIONS; i++)
        options[i] = (struct option_data){
            between(10, 200, 8 * i), between(10, 200, 8 * i + 1), between(0.01, 0.1, 8 * i + 2),
            between(0.05, 0.65, 8 * i + 3), between(0.05, 1, 8 * i + 4), (int)(mix(8 * i + 5) & 1),
        };
    run_threads(body);
    for (uint64_t i = 0; i < OPTIONS; i++)
        checksum += mix(i ^ (uint64_t)llround(prices[i] * 1e4)); /* coarse, so that the C library's last bit is none of it */
    return finish(checksum);
}
