/* Many clients at once, and the origin that they wait for: one epoll loop each.
 *
 *   crowd origin
 *     Listens on a free port of 127.0.0.1 and prints the number. What it answers is in the query of
 *     the request's target:
 *       delay=MS     before the first byte of the answer
 *       pieces=N size=BYTES every=MS   the body: N pieces, one each so many milliseconds
 *       cc=TEXT      Cache-Control; "," is written "+"
 *     /hang makes every later request wait for ever, /go on no longer, /count tells the requests
 *     since the last /count, when the first of them was answered and when the last one was done with.
 *
 *   crowd clients PORT TARGET N SLOW RATE LEAVING LENGTH FROM
 *     N connections, all made before the first request is sent, each with one request. SLOW of them
 *     read RATE bytes a second, and LEAVING of them leave in the middle of a body of LENGTH bytes;
 *     those are not waited for, and not counted among the others. FROM is the last number of the
 *     address that they come from. Prints what they saw, in nanoseconds of the monotonic clock.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int loop, int fd, uint32_t events, void *of, int op)
{
    struct epoll_event event = {.events = events, .data.ptr = of};
    if (epoll_ctl(loop, op, fd, &event) < 0)
        fail("epoll_ctl");
}

/* ---------------------------------------------------------------- origin */

struct answer {
    int fd;
    size_t received;
    char request[4096];
    /* What is to be sent, and when the next of it. 0: nothing. */
    int64_t due;
    long pieces, size, every;
    char head[512];
    size_t head_length, sent;
    struct answer *next;
    int is_listed, is_blocked;
};

static char *filler;
static const size_t FILLER = 4 << 20;
static unsigned long requests;
static int64_t first_answer, last_done;
static int hangs;
/* Those that wait for their time, in no order: there are few, or they are due at once. */
static struct answer *waiting;

static long number(const char *query, const char *name, long otherwise)
{
    const char *found = strstr(query, name);
    return found ? atol(found + strlen(name)) : otherwise;
}

static void list(struct answer *a)
{
    if (!a->is_listed) {
        a->is_listed = 1;
        a->next = waiting;
        waiting = a;
    }
}

static void finish(struct answer *a)
{
    /* The connection is kept for the next request. */
    last_done = now();
    a->due = 0;
}

/* Sends what is due; whether the socket took it all. */
static int send_due(int loop, struct answer *a)
{
    for (;;) {
        size_t total = a->head_length + (size_t)(a->pieces > 0 ? a->size : 0);
        while (a->sent < total) {
            ssize_t n;
            if (a->sent < a->head_length)
                n = send(a->fd, a->head + a->sent, a->head_length - a->sent, MSG_NOSIGNAL | MSG_MORE);
            else
                n = send(a->fd, filler, total - a->sent, MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN) {
                a->is_blocked = 1;
                watch(loop, a->fd, EPOLLIN | EPOLLOUT, a, EPOLL_CTL_MOD);
                return 0;
            }
            if (n < 0)
                return -1;
            a->sent += (size_t)n;
            if (first_answer == 0)
                first_answer = now();
        }
        a->head_length = 0;
        a->sent = 0;
        if (--a->pieces <= 0) {
            finish(a);
            return 1;
        }
        if (a->every > 0) {
            a->due += a->every;
            return 1;
        }
    }
}

static void begin(struct answer *a)
{
    a->request[a->received] = 0;
    a->received = 0;
    char *target = strchr(a->request, ' ');
    char *end = target ? strchr(target + 1, ' ') : NULL;
    if (!end)
        return;
    *end = 0;
    target++;
    a->sent = 0;
    a->pieces = 0;
    a->due = now();
    char body[200] = "";
    if (strncmp(target, "/count", 6) == 0) {
        snprintf(body, sizeof body, "{\"requests\": %lu, \"first\": %lld, \"last\": %lld}", requests,
                 (long long)first_answer, (long long)last_done);
        requests = 0;
        first_answer = last_done = 0;
    } else if (strcmp(target, "/hang") == 0 || strcmp(target, "/go") == 0) {
        hangs = target[1] == 'h';
        strcpy(body, "{}");
    }
    if (body[0]) {
        a->head_length = (size_t)snprintf(a->head, sizeof a->head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s",
                                          strlen(body), body);
        a->pieces = 0;
        a->every = 0;
        int64_t first = first_answer, last = last_done;
        send(a->fd, a->head, a->head_length, MSG_NOSIGNAL);
        first_answer = first;
        last_done = last;
        a->due = 0;
        return;
    }
    requests++;
    if (hangs) {
        a->due = 0;
        return;
    }
    char cc[100] = "max-age=600";
    const char *given = strstr(target, "cc=");
    if (given) {
        size_t n = strcspn(given + 3, "&");
        snprintf(cc, sizeof cc, "%.*s", (int)n, given + 3);
        for (char *c = cc; *c; c++)
            if (*c == '+')
                *c = ',';
    }
    a->pieces = number(target, "pieces=", 1);
    a->size = number(target, "size=", 1024);
    if ((size_t)a->size > FILLER)
        a->size = (long)FILLER;
    a->every = number(target, "every=", 0) * 1000000;
    a->due += number(target, "delay=", 0) * 1000000;
    a->head_length = (size_t)snprintf(
        a->head, sizeof a->head,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"v\"\r\nCache-Control: %s\r\nContent-Length: %lld\r\n\r\n", cc,
        (long long)a->pieces * a->size);
    list(a);
}

static void drop(struct answer *a)
{
    if (a->fd >= 0)
        close(a->fd);
    a->fd = -1;
    a->due = 0;
    if (!a->is_listed)
        free(a);
}

static void origin(void)
{
    filler = malloc(FILLER);
    memset(filler, 'x', FILLER);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16384) < 0)
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int loop = epoll_create1(0);
    watch(loop, listener, EPOLLIN, NULL, EPOLL_CTL_ADD);
    struct epoll_event events[512];
    for (;;) {
        int64_t t = now(), nearest = INT64_MAX;
        struct answer **link = &waiting;
        while (*link) {
            struct answer *a = *link;
            int gone = a->fd < 0;
            if (!gone && a->due && a->due <= t && !a->is_blocked && send_due(loop, a) < 0) {
                close(a->fd);
                gone = 1;
            }
            if (gone || !a->due) {
                struct answer *next = a->next;
                a->is_listed = 0;
                if (gone)
                    free(a);
                *link = next;
                continue;
            }
            if (!a->is_blocked && a->due < nearest)
                nearest = a->due > t ? a->due : t;
            link = &a->next;
        }
        int timeout = nearest == INT64_MAX ? -1 : (int)((nearest - t + 999999) / 1000000);
        int count = epoll_wait(loop, events, 512, timeout);
        for (int i = 0; i < count; i++) {
            struct answer *a = events[i].data.ptr;
            if (!a) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    int one = 1;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    struct answer *fresh = calloc(1, sizeof *fresh);
                    fresh->fd = fd;
                    watch(loop, fd, EPOLLIN, fresh, EPOLL_CTL_ADD);
                }
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                a->is_blocked = 0;
                watch(loop, a->fd, EPOLLIN, a, EPOLL_CTL_MOD);
                if (send_due(loop, a) < 0) {
                    drop(a);
                    continue;
                }
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                ssize_t n = recv(a->fd, a->request + a->received, sizeof a->request - 1 - a->received, 0);
                if (n < 0 && errno == EAGAIN)
                    continue;
                if (n <= 0) {
                    drop(a);
                    continue;
                }
                a->received += (size_t)n;
                a->request[a->received] = 0;
                if (strstr(a->request, "\r\n\r\n"))
                    begin(a);
            }
        }
    }
}

/* ---------------------------------------------------------------- clients */

struct client {
    int fd;
    int kind; /* 0: quick, 1: slow, 2: leaves */
    int connected, done, status;
    int64_t first, end, due;
    /* The bytes read, and those of head and body together. */
    long long read, total;
};

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void print_times(const char *name, int64_t *times, int n)
{
    qsort(times, (size_t)n, sizeof *times, by_value);
    printf("\"%s\": {", name);
    const char *labels[] = {"min", "p50", "p99", "max"};
    int at[] = {0, n / 2, (int)((long)n * 99 / 100), n - 1};
    for (int i = 0; i < 4; i++)
        printf("%s\"%s\": %lld", i ? ", " : "", labels[i], n ? (long long)times[at[i]] : 0);
    printf("}");
}

static void leave(struct client *c, int64_t t)
{
    /* With a reset: no port waits for long. */
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->fd);
    c->fd = -1;
    c->done = 1;
    c->end = t;
}

static int clients(char **arguments)
{
    int port = atoi(arguments[0]);
    const char *target = arguments[1];
    int n = atoi(arguments[2]), slow = atoi(arguments[3]), leaving = atoi(arguments[5]);
    long rate = atol(arguments[4]);
    long long length = atoll(arguments[6]);
    int from = atoi(arguments[7]);
    int quick = n - slow - leaving;
    struct client *all = calloc((size_t)n, sizeof *all);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int loop = epoll_create1(0);
    struct epoll_event events[512];
    int made = 0, connected = 0;
    while (connected < n) {
        /* Not all at once: that would be a test of the listen queue. */
        while (made < n && made - connected < 256) {
            struct client *c = &all[made];
            c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            if (c->fd < 0)
                fail("socket");
            c->kind = made < quick ? 0 : made < quick + slow ? 1 : 2;
            if (c->kind == 1) {
                int small = 4096;
                setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
            }
            struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + (uint32_t)from)};
            int one = 1;
            setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
            if (bind(c->fd, (struct sockaddr *)&source, sizeof source) < 0)
                fail("bind");
            if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
                fail("connect");
            watch(loop, c->fd, EPOLLOUT, c, EPOLL_CTL_ADD);
            made++;
        }
        int count = epoll_wait(loop, events, 512, 10000);
        if (count <= 0)
            fail("connections were not made");
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (c->connected)
                continue;
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) {
                errno = error;
                fail("connect");
            }
            c->connected = 1;
            connected++;
            watch(loop, c->fd, EPOLLIN, c, EPOLL_CTL_MOD);
        }
    }
    char request[512];
    int request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: crowd.example\r\nConnection: close\r\n\r\n", target);
    int64_t began = now();
    /* The slow and the leaving first, so that they are in the way. */
    for (int i = n - 1; i >= 0; i--)
        if (send(all[i].fd, request, (size_t)request_length, MSG_NOSIGNAL) != request_length)
            fail("send");
    int64_t sent = now();
    static char buffer[1 << 16];
    int left = quick, others = slow + leaving;
    int64_t deadline = began + 3600000000000LL;
    while (left > 0 && now() < deadline) {
        int count = epoll_wait(loop, events, 512, slow ? 20 : 1000);
        int64_t t = now();
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (c->done)
                continue;
            if (c->kind == 1 && c->first) {
                /* Read by the clock, below. */
                watch(loop, c->fd, 0, c, EPOLL_CTL_MOD);
                c->due = t;
                continue;
            }
            ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
            if (got < 0 && errno == EAGAIN)
                continue;
            t = now();
            if (got > 0) {
                if (!c->first) {
                    c->first = t;
                    char *body = memmem(buffer, (size_t)got, "\r\n\r\n", 4);
                    if (got >= 12)
                        c->status = atoi(buffer + 9);
                    c->total = body ? body + 4 - buffer + length : -1;
                }
                c->read += got;
                if (c->kind == 2 && c->read >= length / 2) {
                    leave(c, t);
                    others--;
                }
                if (c->kind != 0 || c->read < c->total)
                    continue;
            }
            close(c->fd);
            c->fd = -1;
            c->done = 1;
            c->end = t;
            if (c->kind == 0)
                left--;
        }
        if (slow)
            for (int i = quick; i < quick + slow; i++) {
                struct client *c = &all[i];
                if (c->done || !c->due || c->due > t)
                    continue;
                ssize_t got = recv(c->fd, buffer, (size_t)(rate / 10), 0);
                if (got > 0)
                    c->read += got;
                else if (got == 0 || errno != EAGAIN) {
                    c->done = 1;
                    c->end = t;
                }
                c->due = t + 100000000;
            }
    }
    int64_t finished = now();
    int64_t *firsts = calloc((size_t)n, sizeof *firsts), *ends = calloc((size_t)n, sizeof *ends);
    int good = 0, whole = 0, broken = 0, alive = 0;
    for (int i = 0; i < n; i++) {
        struct client *c = &all[i];
        if (c->kind == 1)
            alive += !c->done;
        if (c->kind != 0)
            continue;
        if (c->status == 200 && c->done && c->read == c->total) {
            firsts[good] = c->first;
            ends[good++] = c->end;
            whole++;
        } else {
            broken++;
        }
    }
    printf("{\"began\": %lld, \"sent\": %lld, \"finished\": %lld, \"whole\": %d, \"not_whole\": %d, \"slow_still_served\": %d, ",
           (long long)began, (long long)sent, (long long)finished, whole, broken, alive);
    print_times("first", firsts, good);
    printf(", ");
    print_times("end", ends, good);
    printf("}\n");
    (void)others;
    return 0;
}

int main(int count, char **arguments)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (count == 2 && strcmp(arguments[1], "origin") == 0)
        origin();
    if (count == 10 && strcmp(arguments[1], "clients") == 0)
        return clients(arguments + 2);
    fprintf(stderr, "crowd origin | crowd clients PORT TARGET N SLOW RATE LEAVING LENGTH FROM\n");
    return 2;
}
