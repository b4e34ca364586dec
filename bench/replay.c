/* Asks for one URL after the other, as a file says, over one connection.
 *
 *   replay PORT FILE
 *     Sends a GET for each line of FILE, in their order, and prints how many answers said that they
 *     came from memory, how many from the durable tier, how many were the origin's, and the bytes of
 *     the bodies of each, in six numbers.
 *
 * Some requests are on their way at once, as HTTP/1.1 allows: whoever answers takes them in their
 * order all the same, so that the same file gives the same answers. A response has a Content-Length. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* How many requests are on their way at most. */
#define AHEAD 16

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

int main(int count, char **words)
{
    static char out[AHEAD * 1024], in[1 << 18], line[512];
    size_t out_length = 0, out_sent = 0, in_length = 0, on_their_way = 0, body = 0;
    unsigned long answers[3] = { 0 }, bytes[3] = { 0 };
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), is_over = 0;
    FILE *file = count == 3 ? fopen(words[2], "r") : NULL;
    if (!file)
        give_up("replay PORT FILE");
    address.sin_port = htons((unsigned short)atoi(words[1]));
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (;;) {
        struct pollfd wait = { .fd = fd, .events = POLLIN };
        ssize_t got;
        /* Refill only when half have been answered, so that requests go out in bunches. */
        if (out_sent == out_length) {
            out_sent = out_length = 0;
            while (!is_over && on_their_way <= AHEAD / 2 && out_length + 1024 <= sizeof out) {
                size_t most = AHEAD - on_their_way;
                for (; most > 0; most--) {
                    if (!fgets(line, sizeof line, file)) {
                        is_over = 1;
                        break;
                    }
                    line[strcspn(line, "\n")] = 0;
                    out_length += (size_t)snprintf(out + out_length, 1024, "GET %s HTTP/1.1\r\nHost: bench.example\r\n\r\n", line);
                    on_their_way++;
                }
            }
        }
        if (!on_their_way)
            break;
        if (out_sent < out_length)
            wait.events |= POLLOUT;
        if (poll(&wait, 1, 60000) <= 0)
            give_up("no answer within a minute");
        if (wait.revents & POLLOUT) {
            ssize_t sent = send(fd, out + out_sent, out_length - out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (sent < 0 && errno != EAGAIN)
                fail("send");
            out_sent += sent > 0 ? (size_t)sent : 0;
        }
        if (!(wait.revents & (POLLIN | POLLHUP | POLLERR)))
            continue;
        got = recv(fd, in + in_length, sizeof in - in_length, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN)
            continue;
        if (got <= 0)
            give_up("the connection ended");
        in_length += (size_t)got;
        for (;;) {
            size_t part = body < in_length ? body : in_length, head_length;
            char *end, *length;
            int from;
            if (part) {
                memmove(in, in + part, in_length - part);
                in_length -= part;
                body -= part;
            }
            if (body || !(end = memmem(in, in_length, "\r\n\r\n", 4)))
                break;
            head_length = (size_t)(end - in) + 4;
            end[2] = 0;
            length = strcasestr(in, "\r\nContent-Length:");
            if (strncmp(in, "HTTP/1.1 200 ", 13) != 0 || !length)
                give_up(in);
            from = strstr(in, "detail=memory") ? 0 : strstr(in, "detail=durable") ? 1 : 2;
            body = strtoul(length + strlen("\r\nContent-Length:"), NULL, 10);
            answers[from]++;
            bytes[from] += body;
            on_their_way--;
            memmove(in, in + head_length, in_length - head_length);
            in_length -= head_length;
        }
        if (in_length == sizeof in)
            give_up("a head that large is none of the benchmark's");
    }
    printf("%lu %lu %lu %lu %lu %lu\n", answers[0], answers[1], answers[2], bytes[0], bytes[1], bytes[2]);
    return 0;
}
