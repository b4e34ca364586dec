/* Requests at a given rate, whatever the server does with them: one epoll loop.
 *
 *   pace PORT TARGET CONNECTIONS RATE MILLISECONDS
 *     Sends RATE requests a second for TARGET, each at its time, over whichever of the kept-alive
 *     CONNECTIONS is free. A request that finds none waits, and its wait counts: what is measured is
 *     what somebody would wait who does not know how busy the server is. Prints how many were answered
 *     within the time, and the latencies that half, 99 % and 99.9 % of them did not exceed, and the
 *     largest, in nanoseconds.
 *
 *   pace PORT TARGET CONNECTIONS idle
 *     Makes CONNECTIONS, asks for TARGET once over each, prints how many there are, and keeps them open
 *     until its input ends.
 *
 *   pace PORT TARGET CONNECTIONS each COUNT
 *     Asks for TARGET0 up to TARGET(COUNT - 1), once each, and prints how many there were.
 *
 * A response has a Content-Length; anything else ends the program. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    /* When its request was due; 0: it is free. */
    int64_t due;
    /* Bytes of the body that are to come, once the head is read. */
    size_t body;
    int in_body;
    size_t received;
    char head[8192];
    struct connection *next_free;
};

static struct connection *free_ones;
static char request[1024];
static size_t request_length;
static int server_port;
static int64_t *latencies;
static size_t answered;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void give_up(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void connect_one(struct connection *c, int port, int loop)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
    int on = 1;
    address.sin_port = htons((uint16_t)port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail("epoll_ctl");
    c->next_free = free_ones;
    free_ones = c;
}

static void make_request(const char *target, const char *number)
{
    int length = snprintf(request, sizeof request, "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n", target, number, server_port);
    if (length < 0 || (size_t)length >= sizeof request)
        give_up("the target is too long");
    request_length = (size_t)length;
}

static void send_one(struct connection *c, int64_t due)
{
    c->due = due;
    if (send(c->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length)
        fail("send");
}

/* Reads what there is; 1 when a response is complete. */
static int receive(struct connection *c)
{
    static char sink[256 * 1024];
    for (;;) {
        ssize_t got;
        if (c->in_body) {
            if (!c->body) {
                c->in_body = 0;
                return 1;
            }
            got = recv(c->fd, sink, c->body < sizeof sink ? c->body : sizeof sink, MSG_DONTWAIT);
        } else {
            got = recv(c->fd, c->head + c->received, sizeof c->head - 1 - c->received, MSG_DONTWAIT);
        }
        if (got < 0 && errno == EAGAIN)
            return 0;
        if (got <= 0)
            give_up("the server hung up");
        if (c->in_body) {
            c->body -= (size_t)got;
            continue;
        }
        c->received += (size_t)got;
        c->head[c->received] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) {
            if (c->received == sizeof c->head - 1)
                give_up("the head of a response is too long");
            continue;
        }
        char *field = strcasestr(c->head, "\r\ncontent-length:");
        if (!field || field > end)
            give_up("a response has no Content-Length");
        size_t length = strtoul(field + 17, NULL, 10);
        size_t here = c->received - (size_t)(end + 4 - c->head);
        if (here > length || strncmp(c->head, "HTTP/1.1 200", 12) != 0)
            give_up("that was not the response");
        c->body = length - here;
        c->in_body = 1;
        c->received = 0;
    }
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Waits for responses, not at all or as long as it takes; the connections that had one are free again. */
static void collect(int loop, int timeout, int64_t until)
{
    struct epoll_event events[256];
    int ready = epoll_wait(loop, events, 256, timeout);
    for (int i = 0; i < ready; i++) {
        struct connection *c = events[i].data.ptr;
        if (!receive(c))
            continue;
        int64_t done = now();
        if (done < until)
            latencies[answered++] = done - c->due;
        c->next_free = free_ones;
        free_ones = c;
    }
}

static void keep_idle(int loop, int connections)
{
    for (int asked = 0; asked < connections; asked++) {
        struct connection *c = free_ones;
        free_ones = c->next_free;
        size_t before = answered;
        send_one(c, 0);
        while (answered == before)
            collect(loop, -1, INT64_MAX);
        /* It has been used: the others are behind it. */
        free_ones = c->next_free;
    }
    printf("%d\n", connections);
    fflush(stdout);
    while (getchar() != EOF)
        ;
}

static void ask_for_each(int loop, const char *target, size_t count)
{
    for (size_t sent = 0; answered < count;) {
        while (free_ones && sent < count) {
            struct connection *c = free_ones;
            char number[32];
            free_ones = c->next_free;
            snprintf(number, sizeof number, "%zu", sent++);
            make_request(target, number);
            send_one(c, 0);
        }
        collect(loop, -1, INT64_MAX);
    }
    printf("%zu\n", answered);
}

int main(int argc, char **argv)
{
    if (argc < 5 || (argc < 6 && strcmp(argv[4], "idle") != 0))
        give_up("usage: pace PORT TARGET CONNECTIONS (RATE MILLISECONDS | each COUNT | idle)");
    int connections = atoi(argv[3]), loop = epoll_create1(EPOLL_CLOEXEC);
    int is_idle = strcmp(argv[4], "idle") == 0, is_each = strcmp(argv[4], "each") == 0;
    double rate = is_idle || is_each ? 0 : atof(argv[4]);
    double seconds = is_idle || is_each ? 0 : atof(argv[5]) / 1000;
    size_t total = is_each ? (size_t)atol(argv[5]) : (size_t)(rate * seconds);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    latencies = malloc((total + (size_t)connections + 1) * sizeof *latencies);
    if (!all || !latencies || loop < 0)
        fail("memory");
    server_port = atoi(argv[1]);
    make_request(argv[2], "");
    for (int i = 0; i < connections; i++)
        connect_one(&all[i], server_port, loop);
    if (is_each) {
        ask_for_each(loop, argv[2], total);
        return 0;
    }
    if (is_idle) {
        keep_idle(loop, connections);
        return 0;
    }
    int64_t start = now(), until = start + (int64_t)(seconds * 1e9);
    size_t sent = 0;
    while (now() < until) {
        /* All that are due, as far as there are connections. */
        while (sent < total && free_ones) {
            int64_t due = start + (int64_t)((double)sent / rate * 1e9);
            if (due > now())
                break;
            struct connection *c = free_ones;
            free_ones = c->next_free;
            send_one(c, due);
            sent++;
        }
        collect(loop, 0, until);
    }
    if (!answered)
        give_up("nothing was answered");
    qsort(latencies, answered, sizeof *latencies, compare);
    printf("%zu %zu %lld %lld %lld %lld\n", total, answered, (long long)latencies[answered / 2],
        (long long)latencies[answered * 99 / 100], (long long)latencies[answered * 999 / 1000],
        (long long)latencies[answered - 1]);
    return 0;
}
