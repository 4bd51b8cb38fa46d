/* The engine of `loadgen`: connections to memcached, a Poisson schedule, and threads that keep to it.
 *
 * Nothing here prints or ends the program. What main() sets before it starts a worker stands first.
 */
#ifndef COLOCATE_OPENLOOP_H
#define COLOCATE_OPENLOOP_H

#define _GNU_SOURCE
#include "common.h"

#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "histogram.h"

enum { IN_BYTES = 1 << 16, BATCH = 64 };
static const int64_t NEVER = INT64_MAX, RETRY_NS = 10000000;

struct request {
    int64_t intended; /* ns after the start, as all times here */
    int interval;     /* -1: given up before it was sent */
    unsigned key : 31, set : 1;
};

struct connection {
    enum { CLOSED, CONNECTING, OPEN } state;
    int fd, writable_wanted, dirty, hit;
    int64_t retry_at;
    struct request *ring;
    uint64_t head, sent, tail; /* the oldest open one, the first unsent one, the end */
    char *out, in[IN_BYTES];
    size_t out_used, out_done, in_used, skip;
};

struct slot { /* one interval of one thread */
    uint64_t issued, answered, misses, errors, open;
    struct histogram latency, lag;
};

struct worker {
    pthread_t thread;
    int epoll, next, interval;
    uint64_t random, rx, tx, disconnects;
    int64_t arrival; /* of the next request, in `interval` */
    struct connection *connections;
    struct slot **slots;
    atomic_int resolved; /* intervals that are over; the main thread has their slots now */
};

static struct sockaddr_storage address;
static socklen_t address_length;
static double *targets, update_ratio;
static int intervals, connections = 4, records = 10000;
static int notify_fd, stop_fd; /* from the workers: an interval is over; to them: look at `duration` */
static size_t key_bytes = 30, value_bytes = 200, out_bytes, depth = 1 << 16;
static int64_t start_at, interval_ns = 1000000000, timeout_ns = 1000000000, spin_ns = 0;
static _Atomic int64_t duration; /* a signal shortens it */
static char *value;

static int64_t clock_ns(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC) - start_at;
}

static int64_t interval_end(int interval)
{
    int64_t end = (interval + 1) * interval_ns, last = atomic_load(&duration);
    return end < last ? end : last;
}

static int intervals_in_all(void)
{
    return (int)((atomic_load(&duration) + interval_ns - 1) / interval_ns);
}

static struct slot *slot_of(struct worker *w, int interval)
{
    if (!w->slots[interval])
        w->slots[interval] = allocate(1, sizeof(struct slot));
    return w->slots[interval];
}

static void set_interest(struct worker *w, struct connection *c, int operation, int writable)
{
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(w->epoll, operation, c->fd, &event);
    c->writable_wanted = writable;
}

static void give_up(struct worker *w, struct request *r)
{
    if (r->interval >= atomic_load_explicit(&w->resolved, memory_order_relaxed))
        w->slots[r->interval]->open--;
    r->interval = -1;
}

static void trim(struct connection *c)
{
    while (c->head != c->sent && c->ring[c->head % depth].interval < 0)
        c->head++;
}

static void hang_up(struct worker *w, struct connection *c)
{
    w->disconnects += c->state == OPEN;
    if (c->state != CLOSED)
        close(c->fd);
    for (; c->head != c->sent; c->head++)
        if (c->ring[c->head % depth].interval >= 0)
            give_up(w, &c->ring[c->head % depth]);
    c->out_used = c->out_done = c->in_used = c->skip = 0;
    c->hit = 0;
    c->state = CLOSED;
    c->retry_at = now_ns() + RETRY_NS;
}

static void dial(struct worker *w, struct connection *c)
{
    int one = 1;
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        c->retry_at = now_ns() + RETRY_NS;
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&address, address_length) < 0 && errno != EINPROGRESS)
        hang_up(w, c);
    else
        set_interest(w, c, EPOLL_CTL_ADD, 1);
}

static void append(struct connection *c, const struct request *r)
{
    char *p = c->out + c->out_used;
    p += sprintf(p, "%s %0*u", r->set ? "set" : "get", (int)key_bytes, (unsigned)r->key);
    if (r->set) {
        p += sprintf(p, " 0 0 %zu\r\n", value_bytes);
        p = mempcpy(p, value, value_bytes);
    }
    p = mempcpy(p, "\r\n", 2);
    c->out_used = (size_t)(p - c->out);
}

static void flush(struct worker *w, struct connection *c, int64_t now)
{
    c->dirty = 0;
    while (c->state == OPEN) {
        for (; c->sent != c->tail && out_bytes - c->out_used >= key_bytes + value_bytes + 64; c->sent++) {
            struct request *r = &c->ring[c->sent % depth];
            if (now - r->intended > timeout_ns)
                give_up(w, r);
            else
                append(c, r);
        }
        trim(c);
        if (c->out_done == c->out_used) {
            c->out_done = c->out_used = 0;
            if (c->sent != c->tail)
                continue;
            if (c->writable_wanted)
                set_interest(w, c, EPOLL_CTL_MOD, 0);
            return;
        }
        ssize_t sent = send(c->fd, c->out + c->out_done, c->out_used - c->out_done, MSG_NOSIGNAL);
        if (sent >= 0) {
            c->out_done += (size_t)sent;
            w->tx += (uint64_t)sent;
        } else if (errno == EAGAIN) {
            if (!c->writable_wanted)
                set_interest(w, c, EPOLL_CTL_MOD, 1);
            return;
        } else if (errno != EINTR) {
            hang_up(w, c);
        }
    }
}

static void answer(struct worker *w, struct connection *c, const char *line, int64_t now)
{
    struct request *r = &c->ring[c->head % depth];
    int well = !memcmp(line, r->set ? "STORE" : "END\r\n", 5), hit = c->hit;
    int interval = r->interval, set = r->set;
    c->hit = 0;
    give_up(w, r);
    trim(c);
    if (interval < atomic_load_explicit(&w->resolved, memory_order_relaxed))
        return;
    struct slot *slot = w->slots[interval];
    if (!well)
        slot->errors++;
    else if (now - r->intended <= timeout_ns) {
        slot->answered++;
        slot->misses += !set && !hit;
        record(&slot->latency, now - r->intended, 1);
    }
}

static void receive(struct worker *w, struct connection *c)
{
    ssize_t got = recv(c->fd, c->in + c->in_used, IN_BYTES - c->in_used, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        hang_up(w, c);
        return;
    }
    int64_t now = now_ns();
    char *p = c->in, *end = c->in + c->in_used + got, *newline;
    w->rx += (uint64_t)got;
    while (p < end) {
        if (c->skip) {
            size_t step = c->skip < (size_t)(end - p) ? c->skip : (size_t)(end - p);
            c->skip -= step;
            p += step;
        } else if (!(newline = memchr(p, '\n', (size_t)(end - p)))) {
            break;
        } else if (newline - p < 4 || c->head == c->sent) {
            hang_up(w, c); /* not memcached, or not to us */
            return;
        } else {
            if (newline - p > 6 && !memcmp(p, "VALUE ", 6)) {
                *newline = 0;
                c->skip = strtoul(strrchr(p, ' '), NULL, 10) + 2;
                c->hit = 1;
            } else {
                answer(w, c, p, now);
            }
            p = newline + 1;
        }
    }
    c->in_used = (size_t)(end - p);
    if (c->in_used == IN_BYTES)
        hang_up(w, c);
    else
        memmove(c->in, p, c->in_used);
}

static void on_event(struct worker *w, struct connection *c, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (c->state == CONNECTING) {
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            hang_up(w, c);
            return;
        }
        c->state = OPEN;
        c->dirty = 1;
    }
    if (c->state == OPEN && events & EPOLLOUT)
        c->dirty = 1;
    if (c->state == OPEN && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        receive(w, c);
}

/* Draw the next arrival after `from`. An exponential gap has no memory, so that it may be drawn anew at each change
 * of the rate. */
static void draw_arrival(struct worker *w, int64_t from)
{
    for (w->arrival = NEVER; w->interval < intervals; w->interval++) {
        double unit = (double)((mix(w->random++) >> 11) + 1) * 0x1p-53;
        double gap = -log(unit) * 1e9 * threads / targets[w->interval]; /* infinite where the target is 0 */
        int64_t end = (w->interval + 1) * interval_ns;
        if (gap < (double)(end - from)) {
            w->arrival = from + llround(gap);
            return;
        }
        from = end;
    }
}

static void arrive(struct worker *w, struct slot *slot)
{
    struct connection *c = &w->connections[w->next];
    for (int i = 0; i < connections && c->state != OPEN; i++)
        c = &w->connections[(w->next + i) % connections];
    w->next = (w->next + 1) % connections;
    slot->issued++;
    if (c->tail - c->head >= depth)
        return;
    uint64_t random = mix(w->random++);
    int set = (double)(random >> 40) * 0x1p-24 < update_ratio;
    c->ring[c->tail++ % depth] = (struct request){
        .intended = w->arrival, .interval = w->interval, .key = (uint32_t)random % (unsigned)records, .set = set};
    slot->open++;
    c->dirty = 1;
}

/* Send what is due; the time after it. */
static int64_t send_due(struct worker *w, int64_t now)
{
    struct histogram *lag[BATCH];
    int64_t intended[BATCH];
    int due = 0;
    if (w->arrival != NEVER && w->arrival >= atomic_load_explicit(&duration, memory_order_relaxed))
        w->arrival = NEVER;
    for (; due < BATCH && w->arrival <= now; due++) {
        struct slot *slot = slot_of(w, w->interval);
        lag[due] = &slot->lag;
        intended[due] = w->arrival;
        arrive(w, slot);
        draw_arrival(w, w->arrival);
    }
    for (int i = 0; i < connections; i++)
        if (w->connections[i].dirty && w->connections[i].state == OPEN)
            flush(w, &w->connections[i], now);
    now = now_ns();
    for (int i = 0; i < due; i++)
        record(lag[i], now - intended[i], 1);
    return now;
}

/* Hand the intervals over that are done with; when to look again, or NEVER after the last. */
static int64_t resolve(struct worker *w, int64_t now)
{
    for (int i; (i = atomic_load(&w->resolved)) < intervals_in_all();) {
        int64_t end = interval_end(i);
        if (now < end || w->arrival < end)
            return end;
        if (w->slots[i] && w->slots[i]->open && now < end + timeout_ns)
            return end + timeout_ns;
        atomic_store(&w->resolved, i + 1);
        eventfd_write(notify_fd, 1);
    }
    return NEVER;
}

static int await(int epoll, struct epoll_event *events, int most, int64_t ns)
{
    static atomic_int too_old; /* epoll_pwait2 came with Linux 5.11 */
    struct timespec timeout = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    if (ns <= 0)
        return epoll_wait(epoll, events, most, 0);
#ifdef SYS_epoll_pwait2
    if (!atomic_load_explicit(&too_old, memory_order_relaxed)) {
        int ready = (int)syscall(SYS_epoll_pwait2, epoll, events, most, &timeout, NULL, 0);
        if (ready >= 0 || errno != ENOSYS)
            return ready;
        atomic_store(&too_old, 1);
    }
#endif
    struct pollfd self = {.fd = epoll, .events = POLLIN};
    return ppoll(&self, 1, &timeout, NULL) > 0 ? epoll_wait(epoll, events, most, 0) : 0;
}

static void *work(void *argument)
{
    struct worker *w = argument;
    struct epoll_event events[64], stop = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = NULL};
    prctl(PR_SET_TIMERSLACK, 1);
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(w->epoll, EPOLL_CTL_ADD, stop_fd, &stop);
    for (int i = 0; i < connections; i++)
        dial(w, &w->connections[i]);
    draw_arrival(w, 0);
    for (int64_t now = now_ns(), wake; (wake = resolve(w, now)) != NEVER;) {
        if (w->arrival < wake)
            wake = w->arrival - spin_ns;
        for (int i = 0; i < connections; i++) {
            struct connection *c = &w->connections[i];
            if (c->state == CLOSED && c->retry_at <= now)
                dial(w, c);
            if (c->state == CLOSED && c->retry_at < wake)
                wake = c->retry_at;
        }
        int ready = await(w->epoll, events, 64, wake - now);
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr)
                on_event(w, events[i].data.ptr, events[i].events);
        now = send_due(w, now_ns());
    }
    return NULL;
}

#endif
