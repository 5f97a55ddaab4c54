/* openloop: asks an HTTP/1.1 server on this machine at random moments, whether or not it has answered before.
 *
 * All moments are drawn before the first request goes out, as a Poisson process, and each latency counts from the
 * moment that was drawn. So a server that stalls pays for every request that fell due meanwhile, which a client that
 * waits for one answer before it sends the next (a closed loop) would never have sent.
 *
 *     cc -O2 -o openloop openloop.c -lm
 *     openloop [-r RATE] [-d SECONDS] [-w WARM_UP_SECONDS] [-c CONNECTIONS] [-k ANSWERS_A_CONNECTION] [-H HEADER]...
 *              [-e FAILURES] 127.0.0.1:PORT REQUESTS
 *
 * REQUESTS is a file with a path a line, of which each request takes one at random; behind a path may stand a tab and
 * one more header. SIGTERM or SIGINT end the run early. What is printed is one JSON object; times are microseconds,
 * and of latencies those of the warm-up are left out. FAILURES is a file that gets a line for each request that was
 * answered by another status than 200, or not at all (0): the time by the monotonic clock, the status, our port.
 *
 *     sent = answered + errors + unanswered; `unsent` fell due, but no connection was free before the run was given up
 *     waited: fell due while every connection was busy
 *     late_*: how long after both its moment and a free connection a request went out, which is this program's fault
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, EVENTS = 128, CONNECTIONS_MAX = 10000, STATUSES = 600, TIMER = CONNECTIONS_MAX };
/* REQUEST_NS is what a request was seen to cost here, sent and received. */
static const int64_t SECOND = 1000000000, SPIN_NS = 60000, REQUEST_NS = 20000, GRACE_S = 5;
static const double ARRIVALS_MAX = 1e8;

typedef struct {
    int fd; /* -1: closed, to be opened by its next request */
    int port, busy, served, status, closes;
    int64_t due, free_since;
    size_t have;    /* of the head */
    long body_left; /* -1: the head is not yet whole */
    char head[HEAD_BYTES];
} Connection;

typedef struct {
    char *bytes;
    size_t size;
} Request;

static struct {
    double rate, seconds, warm_up_s;
    int connections, answers_a_connection;
    char headers[HEAD_BYTES];
    struct sockaddr_in server;
} chosen = {.rate = 1000, .seconds = 10, .warm_up_s = 1, .connections = 64, .server.sin_family = AF_INET};

static Request *requests;
static size_t request_count;
static Connection *connections;
static int *ring, ring_first, ring_count; /* the free connections, the longest free first */
static int64_t *due, *latency, *late;     /* by arrival; by measured answer; by request sent */
static long planned, next_arrival, sent, answered, measured, errors, reconnects, waited, statuses[STATUSES];
static int64_t measured_from;
static int epoll, in_flight;
static int64_t spin_ns;
static volatile sig_atomic_t stopped;
static FILE *failures;

static void die(const char *what) {
    fprintf(stderr, "openloop: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *made = calloc(count ? count : 1, size);
    if (!made) die("out of memory");
    return made;
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint64_t random_bits(void) { /* splitmix64, the same numbers in every run */
    static uint64_t state;
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static void load_requests(const char *file_name) {
    FILE *file = fopen(file_name, "r");
    if (!file) die(file_name);
    char *line = NULL, *text;
    size_t line_size = 0, room = 0;
    while (getline(&line, &line_size, file) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (!*line) continue;
        char *header = strchr(line, '\t');
        if (header) *header++ = 0;
        int size = asprintf(&text, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s%s%s\r\n", line, chosen.headers,
                            header ? header : "", header ? "\r\n" : "");
        if (request_count == room) requests = realloc(requests, (room = 2 * room + 64) * sizeof *requests);
        if (!requests || size < 0) die("out of memory");
        requests[request_count++] = (Request){text, (size_t)size};
    }
    free(line);
    fclose(file);
    errno = 0;
    if (!request_count) die("no requests in the file");
}

static void draw_arrivals(void) {
    double end = chosen.warm_up_s + chosen.seconds, expected = chosen.rate * end;
    if (!(chosen.rate > 0 && end > 0 && expected <= ARRIVALS_MAX)) die("rate and seconds make no sense");
    size_t room = (size_t)(expected + 8 * sqrt(expected) + 64); /* eight standard deviations: never reached */
    due = allocate(room, sizeof *due), latency = allocate(room, sizeof *latency), late = allocate(room, sizeof *late);
    for (double at = 0; planned < (long)room; planned++) {
        at -= log(((double)(random_bits() >> 11) + 0.5) / 9007199254740992.0) / chosen.rate;
        if (at >= end) break;
        due[planned] = (int64_t)(at * 1e9);
    }
}

static void release(Connection *c, int64_t now) {
    if (c->busy) in_flight--;
    c->busy = 0;
    c->free_since = now;
    ring[(ring_first + ring_count++) % chosen.connections] = (int)(c - connections);
}

static int dial(Connection *c) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&chosen.server, sizeof chosen.server)) {
        if (fd >= 0) close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)(c - connections)};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    struct sockaddr_in ours = {0};
    getsockname(fd, (struct sockaddr *)&ours, &(socklen_t){sizeof ours});
    c->port = ntohs(ours.sin_port);
    c->fd = fd;
    c->served = 0;
    return 0;
}

static void hang_up(Connection *c) {
    close(c->fd);
    c->fd = -1, c->port = 0;
    reconnects++;
}

static void note_failure(const Connection *c, int64_t now, int status) {
    if (failures) fprintf(failures, "%lld %d %d\n", (long long)now, status, c->port);
}

/* An answer that will not come: a failed request, and a connection that cannot be used again. */
static void fail(Connection *c, int64_t now) {
    errors++;
    note_failure(c, now, 0);
    if (c->fd >= 0) hang_up(c);
    release(c, now);
}

static void send_next(int64_t now) {
    Connection *c = &connections[ring[ring_first]];
    ring_first = (ring_first + 1) % chosen.connections, ring_count--;
    const Request *request = &requests[random_bits() % request_count];
    c->due = due[next_arrival++];
    if (c->free_since > c->due) waited++;
    late[sent++] = now - (c->free_since > c->due ? c->free_since : c->due);
    c->have = 0, c->body_left = -1, c->busy = 1;
    in_flight++;
    if (c->fd < 0 && dial(c)) fail(c, now);
    else if (send(c->fd, request->bytes, request->size, MSG_NOSIGNAL) != (ssize_t)request->size) fail(c, now);
}

/* Reads what has come. 1: the answer is whole; 0: more is to come; -1: it will not, or makes no sense. */
static int receive(Connection *c) {
    static char thrown_away[1 << 16];
    while (c->body_left < 0) {
        ssize_t got = recv(c->fd, c->head + c->have, HEAD_BYTES - 1 - c->have, 0);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got <= 0 || !c->busy) return -1;
        c->have += (size_t)got;
        c->head[c->have] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) continue;
        end[2] = 0;
        size_t head_size = (size_t)(end + 4 - c->head);
        const char *length = strcasestr(c->head, "\r\ncontent-length:");
        c->status = c->have > 12 ? atoi(c->head + 9) : 0;
        c->closes = strcasestr(c->head, "\r\nconnection: close\r\n") != NULL;
        if (strncmp(c->head, "HTTP/1.", 7) || c->status < 200 || c->status >= STATUSES) return -1;
        int has_body = c->status != 204 && c->status != 304;
        if (has_body && !length) return -1;
        c->body_left = (has_body ? atol(length + 17) : 0) - (long)(c->have - head_size);
        if (c->body_left < 0) return -1;
    }
    while (c->body_left > 0) {
        size_t most = c->body_left < (long)sizeof thrown_away ? (size_t)c->body_left : sizeof thrown_away;
        ssize_t got = recv(c->fd, thrown_away, most, 0);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got <= 0) return -1;
        c->body_left -= got;
    }
    return 1;
}

static void on_readable(Connection *c) {
    if (c->fd < 0) return; /* closed by an earlier event of the same batch */
    if (!c->busy) c->have = 0, c->body_left = -1;
    int outcome = receive(c);
    int64_t now = now_ns();
    if (outcome == 0) return;
    if (!c->busy) { /* the server ends an idle connection, as it may */
        hang_up(c);
    } else if (outcome < 0) {
        fail(c, now);
    } else {
        answered++, statuses[c->status]++, c->served++;
        if (c->status != 200) note_failure(c, now, c->status);
        if (c->due >= measured_from) latency[measured++] = now - c->due;
        if (c->closes || c->served == chosen.answers_a_connection) hang_up(c);
        release(c, now);
    }
}

static void stop(int number) { stopped = number; }

/* Sleeps until shortly before the next arrival and spins the rest, where that leaves most of the core to others: the
 * kernel's timers alone are some 50 µs late. */
static void run(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event events[EVENTS], timer_event = {.events = EPOLLIN | EPOLLET, .data.u32 = TIMER};
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &timer_event);
    int64_t start = now_ns() + SECOND / 100, armed_for = 0;
    for (long i = 0; i < planned; i++) due[i] += start;
    measured_from = start + (int64_t)(chosen.warm_up_s * 1e9);
    int64_t give_up = start + (int64_t)((chosen.warm_up_s + chosen.seconds) * 1e9) + GRACE_S * SECOND;
    for (int i = 0; i < chosen.connections; i++) connections[i].free_since = start;
    for (int64_t now = start; (next_arrival < planned || in_flight) && now < give_up; now = now_ns()) {
        if (stopped && give_up > now + GRACE_S * SECOND) {
            give_up = now + GRACE_S * SECOND;
            while (planned > next_arrival && due[planned - 1] > now) planned--;
        }
        while (ring_count && next_arrival < planned && due[next_arrival] <= (now = now_ns())) send_next(now);
        int wait_ms = 100;
        if (ring_count && next_arrival < planned) {
            int64_t wake = due[next_arrival] - spin_ns;
            if (wake <= now) wait_ms = 0;
            else if (wake != armed_for) {
                struct itimerspec at = {.it_value = {wake / SECOND, wake % SECOND}};
                timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
                armed_for = wake;
            }
        }
        int count = epoll_wait(epoll, events, EVENTS, wait_ms);
        for (int i = 0; i < count; i++)
            if (events[i].data.u32 != TIMER) on_readable(&connections[events[i].data.u32]);
    }
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Sorts times and prints those quantiles of them that have a name. */
static void print_quantiles(int64_t *times, long count, const char *const names[5]) {
    static const double quantiles[] = {0.5, 0.9, 0.99, 0.999, 1};
    qsort(times, (size_t)count, sizeof *times, ascending);
    for (int i = 0; i < 5; i++) {
        long at = (long)ceil(quantiles[i] * (double)count) - 1;
        printf(",\"%s\":%.1f", names[i], count ? (double)times[at] / 1e3 : 0.0);
    }
}

static void report(void) {
    static const char *const of_latency[] = {"p50", "p90", "p99", "p99_9", "max"};
    static const char *const of_lateness[] = {"late_p50", "late_p90", "late_p99", "late_p99_9", "late_max"};
    printf("{\"sent\":%ld,\"answered\":%ld,\"errors\":%ld,\"unanswered\":%d,\"unsent\":%ld,", sent, answered, errors,
           in_flight, planned - next_arrival);
    printf("\"reconnects\":%ld,\"waited\":%ld,\"statuses\":{", reconnects, waited);
    for (int status = 0, others = 0; status < STATUSES; status++)
        if (statuses[status]) printf("%s\"%d\":%ld", others++ ? "," : "", status, statuses[status]);
    printf("},\"measured\":%ld", measured);
    print_quantiles(latency, measured, of_latency);
    print_quantiles(late, sent, of_lateness);
    printf("}\n");
}

static void add_header(const char *header) {
    size_t have = strlen(chosen.headers), room = sizeof chosen.headers - have;
    if (snprintf(chosen.headers + have, room, "%s\r\n", header) >= (int)room) die("the headers are too long");
}

static void parse(int count, char **arguments) {
    for (int option; (option = getopt(count, arguments, "r:d:w:c:k:H:e:")) != -1;) {
        if (option == 'r') chosen.rate = atof(optarg);
        else if (option == 'd') chosen.seconds = atof(optarg);
        else if (option == 'w') chosen.warm_up_s = atof(optarg);
        else if (option == 'c') chosen.connections = atoi(optarg);
        else if (option == 'k') chosen.answers_a_connection = atoi(optarg);
        else if (option == 'H') add_header(optarg);
        else if (option == 'e' && !(failures = fopen(optarg, "w"))) die(optarg);
        else if (option == 'e') setlinebuf(failures);
        else exit(2);
    }
    errno = 0;
    char *colon = count - optind == 2 ? strchr(arguments[optind], ':') : NULL;
    if (!colon) die("usage: openloop [OPTIONS] 127.0.0.1:PORT REQUESTS");
    *colon = 0;
    chosen.server.sin_port = htons((uint16_t)atoi(colon + 1));
    int is_address = inet_pton(AF_INET, arguments[optind], &chosen.server.sin_addr);
    if (is_address != 1 || ntohl(chosen.server.sin_addr.s_addr) >> 24 != 127) die("only loopback addresses");
    if (chosen.connections < 1 || chosen.connections > CONNECTIONS_MAX) die("from 1 to 10000 connections");
}

int main(int count, char **arguments) {
    parse(count, arguments);
    load_requests(arguments[optind + 1]);
    draw_arrivals();
    connections = allocate((size_t)chosen.connections, sizeof *connections);
    ring = allocate((size_t)chosen.connections, sizeof *ring);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < chosen.connections; i++) {
        if (dial(&connections[i])) die("cannot connect");
        release(&connections[i], 0);
    }
    struct sigaction ending = {.sa_handler = stop};
    sigaction(SIGTERM, &ending, NULL);
    sigaction(SIGINT, &ending, NULL);
    spin_ns = chosen.rate * (double)SPIN_NS < 0.25 * (double)SECOND ? SPIN_NS : 0;
    /* Clients have machines of their own. Where the kernel allows it, and this program sleeps at least half of the time,
     * it does not queue for a core behind the servers and loaders that share this machine with it. */
    if (chosen.rate * (double)(spin_ns + REQUEST_NS) < 0.5 * (double)SECOND)
        sched_setscheduler(0, SCHED_RR, &(struct sched_param){1});
    run();
    report();
    return 0;
}
