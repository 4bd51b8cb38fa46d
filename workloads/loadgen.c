/* An open-loop load generator for memcached's text protocol over TCP.
 *
 *     loadgen [options] ADDRESS PORT TARGET...      requests a second, one TARGET an interval
 *     loadgen -L [options] ADDRESS PORT             store the records, read them back, end
 *
 *     -i SECONDS length of an interval   -t SECONDS total time (default: all intervals)
 *     -c N connections a thread          -T N threads        -d N requests open on a connection at most
 *     -k N bytes of a key                -v N of a value     -r N records     -u RATIO of sets among requests
 *     -s N seed   -w SECONDS wait for an answer   -x US spin before a send   -C N pin to a core   -p real-time
 *
 * Arrivals are a Poisson process that is drawn ahead and never waits for the server. Latency counts from the intended
 * time of a request. A request without an answer within -w is lost, and stands in the percentiles with that time: to
 * leave it out would flatter the server. The generator's own lag is the time from intended to sent. As arrivals are
 * Poisson they sample time evenly, so the lag also tells how late answers were read.
 *
 * Prints JSON, a line as each interval ends: when all its requests are answered or given up. Exit code 0, 1 (the
 * server went wrong while loading), 2 (bad arguments, no server), 130 and 143 on a signal, with all lines printed.
 */
#include "openloop.h"

#include <arpa/inet.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

enum { PIPELINE = 64 };
static const double QUANTILES[] = {.05, .10, .50, .67, .75, .80, .85, .90, .95, .99, .999, .9999};
static const char *const QUANTILE_NAMES[] = {"p5",  "p10", "p50", "p67", "p75",  "p80",
                                             "p85", "p90", "p95", "p99", "p999", "p9999"};

static int loading, realtime, cpu = -1;
static uint64_t seed = 1;
static double total_s = INFINITY;
static struct worker *workers;

static double number(int option, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most))
        die(2, "-%c %s: give a number from %g to %g", option, text, least, most);
    return value;
}

static void parse(int argc, char **argv)
{
    int option;
    double interval_s = 1;
    while ((option = getopt(argc, argv, "i:t:c:T:d:k:v:r:u:s:w:x:C:pL")) != -1) {
        switch (option) {
        case 'i': interval_s = number(option, optarg, 0.01, 1e6); break;
        case 't': total_s = number(option, optarg, 0.01, 1e9); break;
        case 'c': connections = (int)number(option, optarg, 1, 1024); break;
        case 'T': threads = (int)number(option, optarg, 1, MAX_THREADS); break;
        case 'd': depth = (size_t)number(option, optarg, 1, 1 << 20); break;
        case 'k': key_bytes = (size_t)number(option, optarg, 1, 250); break;
        case 'v': value_bytes = (size_t)number(option, optarg, 0, 1 << 20); break;
        case 'r': records = (int)number(option, optarg, 1, 1 << 30); break;
        case 'u': update_ratio = number(option, optarg, 0, 1); break;
        case 's': seed = (uint64_t)number(option, optarg, 0, 1e15); break;
        case 'w': timeout_ns = (int64_t)(1e9 * number(option, optarg, 0.001, 600)); break;
        case 'x': spin_ns = (int64_t)(1e3 * number(option, optarg, 0, 1e6)); break;
        case 'C': cpu = (int)number(option, optarg, 0, CPU_SETSIZE - 1); break;
        case 'p': realtime = 1; break;
        case 'L': loading = 1; break;
        default: die(2, "unknown option");
        }
    }
    if (argc - optind < 2 || (argc - optind == 2) != loading)
        die(2, "usage: %s [options] ADDRESS PORT TARGET... | -L [options] ADDRESS PORT", program);
    struct sockaddr_in *four = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&address;
    in_port_t port = htons((uint16_t)number('P', argv[optind + 1], 1, 65535));
    if (inet_pton(AF_INET, argv[optind], &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = port;
        address_length = sizeof *four;
    } else if (inet_pton(AF_INET6, argv[optind], &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = port;
        address_length = sizeof *six;
    } else {
        die(2, "%s is no IP address", argv[optind]);
    }
    intervals = argc - optind - 2;
    targets = allocate((size_t)intervals + 1, sizeof *targets);
    for (int i = 0; i < intervals; i++)
        targets[i] = number('Q', argv[optind + 2 + i], 0, 1e9);
    interval_ns = llround(1e9 * interval_s);
    int64_t all = intervals * interval_ns;
    duration = 1e9 * total_s < (double)all ? llround(1e9 * total_s) : all;
    value = allocate(1, value_bytes + 1);
    memset(value, 'x', value_bytes);
    out_bytes = key_bytes + value_bytes + 64 > 1 << 16 ? key_bytes + value_bytes + 64 : 1 << 16;
}

/* A blocking connection, or the end of the program: the first word on whether there is a server at all. */
static int connect_once(void)
{
    struct timeval patience = {.tv_sec = 10};
    int one = 1;
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* holds for connect() too */
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, address_length) < 0)
        die(2, "%s", errno == EINPROGRESS ? "no connection within 10 s" : strerror(errno));
    return fd;
}

static void expect(FILE *in, const char *start, const char *doing)
{
    char line[512] = "";
    if (!fgets(line, sizeof line, in))
        die(1, "%s: %s", doing, errno == EAGAIN ? "no answer within 10 s" : "the connection was closed");
    line[strcspn(line, "\r\n")] = 0;
    if (strncmp(line, start, strlen(start)))
        die(1, "%s: the server said: %s", doing, line);
}

/* Store every record, then read every one back: what was evicted meanwhile would be a miss in each measurement. */
static int load_records(void)
{
    int fd = connect_once(), found = 0;
    FILE *in = fdopen(dup(fd), "r"), *out = fdopen(fd, "w");
    char line[512], *back = allocate(1, value_bytes + 2);
    setvbuf(out, NULL, _IOFBF, 1 << 18);
    for (int first = 0, end; first < records; first = end) {
        end = records - first < PIPELINE ? records : first + PIPELINE;
        for (int i = first; i < end; i++)
            fprintf(out, "set %0*d 0 0 %zu\r\n%s\r\n", (int)key_bytes, i, value_bytes, value);
        fflush(out);
        for (int i = first; i < end; i++)
            expect(in, "STORED", "storing the records");
    }
    for (int first = 0, end; first < records; first = end) {
        end = records - first < PIPELINE ? records : first + PIPELINE;
        for (int i = first; i < end; i++)
            fprintf(out, "get %0*d\r\n", (int)key_bytes, i);
        fflush(out);
        for (int i = first; i < end; i++) {
            if (!fgets(line, sizeof line, in))
                die(1, "reading the records back: the connection was closed");
            if (!strncmp(line, "END", 3))
                continue;
            found += fread(back, 1, value_bytes + 2, in) == value_bytes + 2 && !memcmp(back, value, value_bytes);
            expect(in, "END", "reading the records back");
        }
    }
    printf("{\"records\": %d, \"found\": %d}\n", records, found);
    return fflush(stdout) ? 1 : 0;
}

/* Linux stops a real-time thread that uses over 95 % of a core for 50 ms in each second (sched(7)): that is a rate too
 * high for one thread, and the lag tells. */
static const char *be_realtime(void)
{
    struct sched_param priority = {.sched_priority = 1};
    if (!sched_setscheduler(0, SCHED_FIFO, &priority))
        return "SCHED_FIFO";
    return setpriority(PRIO_PROCESS, 0, -10) ? "refused" : "nice -10";
}

static void print_interval(int index)
{
    static struct slot all;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < threads; i++) {
        struct slot *slot = workers[i].slots[index];
        if (!slot)
            continue;
        all.issued += slot->issued;
        all.answered += slot->answered;
        all.misses += slot->misses;
        all.errors += slot->errors;
        merge(&all.latency, &slot->latency);
        merge(&all.lag, &slot->lag);
        free(slot);
    }
    uint64_t lost = all.issued - all.answered;
    record(&all.latency, timeout_ns, lost);
    printf("{\"interval\": %d, \"seconds\": %.6f, \"target_qps\": %.0f, \"sent\": %" PRIu64 ", \"answered\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"misses\": %" PRIu64 ", \"latency_us\": {",
           index, 1e-9 * (double)(interval_end(index) - index * interval_ns), targets[index], all.issued, all.answered,
           lost, all.errors, all.misses);
    double count = all.latency.count ? (double)all.latency.count : 1;
    printf("\"avg\": %.1f, \"std\": %.1f, \"min\": %.1f", 1e-3 * all.latency.sum / count,
           1e-3 * deviation(&all.latency), 1e-3 * (double)all.latency.least);
    for (size_t i = 0; i < sizeof QUANTILES / sizeof *QUANTILES; i++)
        printf(", \"%s\": %.1f", QUANTILE_NAMES[i], 1e-3 * (double)quantile(&all.latency, QUANTILES[i]));
    printf("}, \"lag_us\": {\"p50\": %.1f, \"p95\": %.1f, \"max\": %.1f}, \"late_over_1ms\": %" PRIu64 "}\n",
           1e-3 * (double)quantile(&all.lag, .50), 1e-3 * (double)quantile(&all.lag, .95), 1e-3 * (double)all.lag.most,
           above(&all.lag, 1000000));
    fflush(stdout);
}

/* Print each interval as the last thread is done with it; the signal that ended the run, or 0. */
static int coordinate(int signal_fd)
{
    struct pollfd watched[] = {
        {.fd = notify_fd, .events = POLLIN}, {.fd = signal_fd, .events = POLLIN}, {.fd = STDOUT_FILENO}};
    int ended_by = 0;
    for (int next = 0; next < intervals_in_all();) {
        int over = 1;
        for (int i = 0; i < threads; i++)
            over &= atomic_load(&workers[i].resolved) > next;
        if (over) {
            print_interval(next++);
            continue;
        }
        if (poll(watched, 3, -1) < 0)
            continue;
        eventfd_t count;
        struct signalfd_siginfo info;
        if (watched[2].revents & (POLLERR | POLLNVAL))
            _exit(1); /* nobody listens any more */
        if (watched[0].revents)
            eventfd_read(notify_fd, &count);
        if (watched[1].revents && read(signal_fd, &info, sizeof info) == sizeof info) {
            if (ended_by)
                _exit(128 + ended_by);
            ended_by = (int)info.ssi_signo;
            int64_t now = now_ns();
            if (now < duration)
                duration = now > 0 ? now : 0;
            eventfd_write(stop_fd, 1);
        }
    }
    return ended_by;
}

int main(int argc, char **argv)
{
    sigset_t signals;
    struct rusage usage;
    uint64_t rx = 0, tx = 0, disconnects = 0;
    const char *priority = "normal";
    cpu_set_t one;
    program = "loadgen";
    opterr = 0;
    parse(argc, argv);
    CPU_ZERO(&one);
    if (cpu >= 0 && (CPU_SET(cpu, &one), sched_setaffinity(0, sizeof one, &one)))
        die(2, "cannot run on core %d: %s", cpu, strerror(errno));
    if (loading)
        return load_records();
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    close(connect_once());
    if (realtime)
        priority = be_realtime();
    notify_fd = eventfd(0, EFD_CLOEXEC);
    stop_fd = eventfd(0, EFD_CLOEXEC);
    workers = allocate((size_t)threads, sizeof *workers);
    for (int i = 0; i < threads; i++) {
        struct worker *w = &workers[i];
        w->random = mix(seed * MAX_THREADS + (uint64_t)i);
        w->slots = allocate((size_t)intervals, sizeof(struct slot *));
        w->connections = allocate((size_t)connections, sizeof(struct connection));
        for (int j = 0; j < connections; j++) {
            w->connections[j].ring = allocate(depth, sizeof(struct request));
            w->connections[j].out = allocate(1, out_bytes);
        }
    }
    int64_t lead = 5000000; /* for the threads to start */
    start_at = clock_ns(CLOCK_MONOTONIC) + lead;
    printf("{\"start_ms\": %" PRId64 ", \"priority\": \"%s\"}\n", (clock_ns(CLOCK_REALTIME) + lead) / 1000000,
           priority);
    fflush(stdout);
    for (int i = 0; i < threads; i++)
        workers[i].thread = start_thread(work, &workers[i]);
    int ended_by = coordinate(signalfd(-1, &signals, SFD_CLOEXEC));
    for (int i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        rx += workers[i].rx;
        tx += workers[i].tx;
        disconnects += workers[i].disconnects;
    }
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"end_ms\": %" PRId64 ", \"rx_bytes\": %" PRIu64 ", \"tx_bytes\": %" PRIu64 ", \"disconnects\": %" PRIu64
           ", \"cpu_s\": %.3f}\n",
           clock_ns(CLOCK_REALTIME) / 1000000, rx, tx, disconnects,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
               + 1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
    return fflush(stdout) ? 1 : ended_by ? 128 + ended_by : 0;
}
