/* The origin of the benchmarks: fixed bytes from one epoll loop, and nothing else.
 *
 * It has to be faster than anything that is measured in front of it, and it is the floor that a
 * server's cost per request is held against: parse a request line, one send.
 *
 *   /0, /1k, /10k, /100k, /1m   as many bytes that may be kept for an hour, with an ETag
 *   /page/...    1 KiB of the same kind
 *   /4k/...      4 KiB of the same kind
 *   /bytes/N/... N bytes of the same kind; of at most a hundred different N
 *   /pass        1 KiB that must not be stored
 *   /count       how many requests for the others there have been
 *
 * It listens on a free port of 127.0.0.1 and prints the number. It understands GET with no body,
 * kept alive or not, which is what the benchmark sends. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ETAG "\"one-of-a-kind\""
#define DATE_LENGTH 29

/* Fields of a page that may be kept, of one that may not, and of the last on its connection. */
#define SHARED "Cache-Control: public, max-age=3600\r\nETag: " ETAG "\r\n"
#define UNSHARED "Cache-Control: no-store\r\n"
#define LAST "Connection: close\r\n"

/* A response as it goes out. The date is overwritten in place as time goes by: a cache works out
 * ages from it. */
struct response {
    char *bytes;
    size_t length;
    char *date;
};

struct page {
    const char *target;
    struct response whole;
    /* The same, saying that the connection ends with it. */
    struct response last;
    struct response not_modified;
};

struct connection {
    int fd;
    int closing;
    /* What is left to send, if the socket was full. */
    const char *rest;
    size_t rest_length;
    size_t received;
    char buffer[16384];
};

/* What was asked for by its length. */
struct sized {
    size_t length;
    struct response whole;
};

static struct page pages[7];
static struct sized sized[100];
static size_t sizes;
static struct response not_found;
static unsigned long answered;
static time_t date_now;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct response make_response(const char *status, const char *fields, size_t length)
{
    struct response response;
    char head[512];
    int head_length = snprintf(head, sizeof head,
        "HTTP/1.1 %s\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n%s", status, fields);
    if (length != (size_t)-1)
        head_length += snprintf(head + head_length, sizeof head - (size_t)head_length,
            "Content-Type: text/plain\r\nContent-Length: %zu\r\n", length);
    else
        length = 0;
    head_length += snprintf(head + head_length, sizeof head - (size_t)head_length, "\r\n");

    response.length = (size_t)head_length + length;
    response.bytes = malloc(response.length);
    if (!response.bytes)
        fail("malloc");
    memcpy(response.bytes, head, (size_t)head_length);
    for (size_t i = 0; i < length; i++)
        response.bytes[(size_t)head_length + i] = (char)('a' + i % 26);
    response.date = strstr(response.bytes, "Date: ") + strlen("Date: ");
    return response;
}

static void make_pages(void)
{
    static const char *const targets[] = { "/1k", "/0", "/10k", "/100k", "/1m" };
    static const size_t lengths[] = { 1 << 10, 0, 10 << 10, 100 << 10, 1 << 20 };
    for (size_t i = 0; i < sizeof targets / sizeof targets[0]; i++) {
        pages[i].target = targets[i];
        pages[i].whole = make_response("200 OK", SHARED, lengths[i]);
        pages[i].last = make_response("200 OK", SHARED LAST, lengths[i]);
        pages[i].not_modified = make_response("304 Not Modified", SHARED, (size_t)-1);
    }
    pages[5].target = "/pass";
    pages[5].whole = make_response("200 OK", UNSHARED, 1024);
    pages[5].last = make_response("200 OK", UNSHARED LAST, 1024);
    pages[5].not_modified = pages[5].whole;
    pages[6].target = "/4k";
    pages[6].whole = make_response("200 OK", SHARED, 4096);
    pages[6].last = make_response("200 OK", SHARED LAST, 4096);
    pages[6].not_modified = pages[6].whole;
    not_found = make_response("404 Not Found", UNSHARED, 0);
}

static void set_date(void)
{
    time_t now = time(NULL);
    char text[DATE_LENGTH + 1];
    struct tm parts;
    if (now == date_now)
        return;
    date_now = now;
    strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &parts));
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        memcpy(pages[i].whole.date, text, DATE_LENGTH);
        memcpy(pages[i].last.date, text, DATE_LENGTH);
        memcpy(pages[i].not_modified.date, text, DATE_LENGTH);
    }
    for (size_t i = 0; i < sizes; i++)
        memcpy(sized[i].whole.date, text, DATE_LENGTH);
    memcpy(not_found.date, text, DATE_LENGTH);
}

static struct response of_size(size_t length)
{
    for (size_t i = 0; i < sizes; i++) {
        if (sized[i].length == length)
            return sized[i].whole;
    }
    if (sizes == sizeof sized / sizeof sized[0] || length > 1 << 24)
        return not_found;
    sized[sizes].length = length;
    sized[sizes].whole = make_response("200 OK", SHARED, length);
    memcpy(sized[sizes].whole.date, not_found.date, DATE_LENGTH);
    return sized[sizes++].whole;
}

static struct response count_response(void)
{
    static char bytes[256];
    char number[32];
    struct response response;
    int length = snprintf(number, sizeof number, "%lu\n", answered);
    response.length = (size_t)snprintf(bytes, sizeof bytes,
        "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n%s", length, number);
    response.bytes = bytes;
    response.date = NULL;
    return response;
}

static struct response choose(const char *head, size_t length, int is_last)
{
    const char *target = head + strlen("GET ");
    const char *end = length > strlen("GET ") ? memchr(target, ' ', length - strlen("GET ")) : NULL;
    size_t target_length;
    if (!end || strncmp(head, "GET ", 4) != 0)
        return not_found;
    target_length = (size_t)(end - target);
    if (target_length == strlen("/count") && memcmp(target, "/count", target_length) == 0)
        return count_response();
    answered++;
    if (target_length > strlen("/page/") && memcmp(target, "/page/", strlen("/page/")) == 0)
        return is_last ? pages[0].last : pages[0].whole;
    if (target_length > strlen("/4k/") && memcmp(target, "/4k/", strlen("/4k/")) == 0)
        return is_last ? pages[6].last : pages[6].whole;
    if (target_length > strlen("/bytes/") && memcmp(target, "/bytes/", strlen("/bytes/")) == 0)
        return of_size(strtoul(target + strlen("/bytes/"), NULL, 10));
    for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) {
        if (strlen(pages[i].target) != target_length || memcmp(target, pages[i].target, target_length) != 0)
            continue;
        if (memmem(head, length, ETAG, strlen(ETAG)))
            return pages[i].not_modified;
        return is_last ? pages[i].last : pages[i].whole;
    }
    return not_found;
}

static void hang_up(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

/* Sends what there is to send; 0 when the connection is gone, and freed. */
static int send_rest(int epoll, struct connection *connection)
{
    struct epoll_event event = { .data.ptr = connection };
    while (connection->rest_length) {
        ssize_t sent = send(connection->fd, connection->rest, connection->rest_length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            event.events = EPOLLOUT;
            epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
            return 1;
        }
        if (sent < 0) {
            hang_up(connection);
            return 0;
        }
        connection->rest += sent;
        connection->rest_length -= (size_t)sent;
    }
    if (connection->closing) {
        hang_up(connection);
        return 0;
    }
    return 1;
}

/* Answers every whole request in the buffer, as far as the socket takes it. */
static void answer(int epoll, struct connection *connection)
{
    char *start = connection->buffer;
    size_t left = connection->received;
    while (!connection->rest_length) {
        char *end = memmem(start, left, "\r\n\r\n", 4);
        struct response response;
        size_t length;
        if (!end)
            break;
        length = (size_t)(end - start) + 4;
        if (memmem(start, length, " HTTP/1.0\r\n", 11) || memmem(start, length, "\r\nConnection: close\r\n", 21))
            connection->closing = 1;
        response = choose(start, length, connection->closing);
        start += length;
        left -= length;
        connection->rest = response.bytes;
        connection->rest_length = response.length;
        if (!send_rest(epoll, connection))
            return;
    }
    if (left == sizeof connection->buffer) {
        /* A head that large is none of the benchmark's. */
        hang_up(connection);
        return;
    }
    memmove(connection->buffer, start, left);
    connection->received = left;
}

static void readable(int epoll, struct connection *connection)
{
    ssize_t got = recv(connection->fd, connection->buffer + connection->received,
        sizeof connection->buffer - connection->received, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        hang_up(connection);
        return;
    }
    connection->received += (size_t)got;
    answer(epoll, connection);
}

static void writable(int epoll, struct connection *connection)
{
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };
    if (!send_rest(epoll, connection) || connection->rest_length)
        return;
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    answer(epoll, connection);
}

static void accept_all(int epoll, int listener)
{
    for (;;) {
        int on = 1;
        struct epoll_event event = { .events = EPOLLIN };
        struct connection *connection;
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connection = malloc(sizeof *connection);
        if (!connection)
            fail("malloc");
        connection->fd = fd;
        connection->closing = 0;
        connection->rest_length = 0;
        connection->received = 0;
        event.data.ptr = connection;
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
    }
}

int main(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[256];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (epoll < 0 || listener < 0)
        fail("socket");
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0)
        fail("listen");
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("getsockname");
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        fail("epoll_ctl");
    make_pages();
    set_date();
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        if (ready < 0 && errno != EINTR)
            fail("epoll_wait");
        set_date();
        for (int i = 0; i < ready; i++) {
            if (!events[i].data.ptr)
                accept_all(epoll, listener);
            else if (events[i].events & EPOLLOUT)
                writable(epoll, events[i].data.ptr);
            else
                readable(epoll, events[i].data.ptr);
        }
    }
}
