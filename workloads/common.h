/* What every kernel shares: its command line, threads, a serial first part, and the one line that proves its work.
 *
 *     <kernel> -i test|simlarge|native [-n threads]
 *
 * Exit code 0, 1 (out of memory or threads), 2 (bad arguments), 143 on SIGTERM and 130 on SIGINT. The total work
 * depends on -i alone, and so does the checksum: kernels sum integers, or hash results that one thread computes
 * wholly, so that no order of threads can change it.
 */
#ifndef COLOCATE_COMMON_H
#define COLOCATE_COMMON_H

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define SPIN_S 100e-6
#define UNUSED __attribute__((unused))

enum input { TEST, SIMLARGE, NATIVE, INPUTS };
static const char *const INPUT_NAMES[INPUTS] = {"test", "simlarge", "native"};

static const char *program = "kernel";
static enum input input = TEST;
static int threads = 1;
static double started_s;

static UNUSED _Noreturn __attribute__((format(printf, 2, 3))) void die(int code, const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "%s: ", program);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(code);
}

static UNUSED double monotonic_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void on_signal(int number)
{
    _exit(128 + number);
}

/* The kernel drops a signal that process 1 of a container has no handler for, so each kernel installs one. */
static UNUSED void die_on_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t both;
    sigemptyset(&both);
    sigaddset(&both, SIGTERM);
    sigaddset(&both, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigprocmask(SIG_UNBLOCK, &both, NULL); /* `run` blocked them, so that none is lost before this line */
}

static UNUSED int parse_threads(const char *text)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > MAX_THREADS)
        die(2, "-n %s: give a number of threads from 1 to %d", text, MAX_THREADS);
    return (int)value;
}

/* Read the command line and start the clock; to be called first. */
static UNUSED void begin(int argc, char **argv)
{
    int option, known = INPUTS;
    program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    die_on_signals();
    opterr = 0;
    while ((option = getopt(argc, argv, "i:n:")) != -1) {
        if (option == 'i') {
            for (known = 0; known < INPUTS && strcmp(optarg, INPUT_NAMES[known]); known++)
                ;
            if (known == INPUTS)
                die(2, "-i %s: give test, simlarge or native", optarg);
        } else if (option == 'n') {
            threads = parse_threads(optarg);
        } else {
            die(2, "usage: %s -i test|simlarge|native [-n threads]", program);
        }
    }
    if (known == INPUTS || optind != argc)
        die(2, "usage: %s -i test|simlarge|native [-n threads]", program);
    input = (enum input)known;
    started_s = monotonic_s();
}

static UNUSED void need_power_of_two(void)
{
    if (threads & (threads - 1))
        die(2, "-n %d: the number of threads must be a power of two", threads);
}

/* Zeroed memory, or the end of the program. */
static UNUSED void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die(1, "out of memory (%zu items of %zu bytes)", count, size);
    return memory;
}

/* A well mixed function of a counter (the finalizer of splitmix64): input data without a generator's serial state. */
static UNUSED uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The share [*first, *end) of `total` items that thread `id` works on. */
static UNUSED void share_of(size_t total, int id, size_t *first, size_t *end)
{
    *first = total * (size_t)id / (size_t)threads;
    *end = total * (size_t)(id + 1) / (size_t)threads;
}

/* The next chunk [*first, *end) of `total` items nobody has taken yet; 0 when there is none. */
static UNUSED int take(atomic_size_t *next, size_t total, size_t chunk, size_t *first, size_t *end)
{
    *first = atomic_fetch_add(next, chunk);
    if (*first >= total)
        return 0;
    *end = *first + chunk < total ? *first + chunk : total;
    return 1;
}

static pthread_barrier_t barrier; /* for all threads of run_threads() */
static UNUSED atomic_uint_least64_t arrivals; /* at it so far, of those that spin */

/* Wait for the others; non-zero in exactly one thread, the one that does what is serial. */
static UNUSED int meet(void)
{
    return pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD;
}

/* The same for barriers that are close to each other, in kernels that use no other: spin before sleeping. A sleeper is
 * woken on the core of whoever wakes it, and threads that often sleep end up sharing one.
 */
static UNUSED int spin_and_meet(void)
{
    uint64_t all = (atomic_fetch_add(&arrivals, 1) / (uint64_t)threads + 1) * (uint64_t)threads;
    for (double until_s = monotonic_s() + SPIN_S; atomic_load(&arrivals) < all && monotonic_s() < until_s;)
        ;
    return meet();
}

static UNUSED pthread_t start_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, body, argument);
    if (failed)
        die(1, "cannot start a thread: %s", strerror(failed));
    return thread;
}

static void (*thread_body)(int id);

static void *call_body(void *id)
{
    thread_body((int)(intptr_t)id);
    return NULL;
}

/* Run body(0) to body(threads - 1) side by side, the first in the calling thread, and wait for all. */
static UNUSED void run_threads(void (*body)(int id))
{
    pthread_t others[MAX_THREADS];
    thread_body = body;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int id = 1; id < threads; id++)
        others[id] = start_thread(call_body, (void *)(intptr_t)id);
    body(0);
    for (int id = 1; id < threads; id++)
        pthread_join(others[id], NULL);
    pthread_barrier_destroy(&barrier);
}

/* Print what was done; the value of main(). */
static UNUSED int finish(uint64_t checksum)
{
    printf("%s %s: %d threads, %.3f s\n", program, INPUT_NAMES[input], threads, monotonic_s() - started_s);
    printf("checksum %016" PRIx64 "\n", checksum);
    return fflush(stdout) ? 1 : 0;
}

#endif
