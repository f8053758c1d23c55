/* wsload: the load generator. One thread, epoll, no allocation per message; loopback only.
 *
 *     cc -O2 -o wsload wsload.c [-DHAVE_ZLIB -lz]
 *     wsload -p PORT -m echo -n 100 -s 32 -P 16 -S SERVER_PID
 *
 * One JSON object on standard output, "open" on standard error once all connections are. The server's processor time is read from
 * /proc/PID/task/<every thread>/schedstat at the beginning and the end of the measured window: it
 * counts only what the server itself has run, so it stays steady where other load would change
 * throughput and latency. `usage` lists the options.
 *
 * Modes:
 *   echo     each connection keeps OUTSTANDING messages on their way, or sends one each INTERVAL
 *   fanout   one connection more sends a message, and waits until it has come back on all of them
 *   connect  open all, hold them idle, close them; processor time of each step, and memory
 *
 * What comes back is always checked for its length, opcode and header; with -v for its content.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
#endif

typedef uint64_t u64;
typedef uint8_t u8;

enum { MAX_OUTSTANDING = 64, MAX_PIDS = 64, EVENTS = 1024, BUFFER = 1 << 20 };
enum { TEXT = 1, BINARY = 2, CLOSE = 8 };
enum state { CONNECTING, UPGRADING, OPEN, CLOSED };

struct connection {
    int fd;
    enum state state;
    int wants_out;
    /* Out: whole frames still to be sent, which of the ring comes next, and how far it is out. */
    long pending;
    int next;
    size_t offset;
    u64 sent_at[MAX_OUTSTANDING]; /* a ring: when each outstanding message was sent */
    int newest, oldest;
    u64 next_at; /* with -i: when the next message is due */
    /* In: the frame's header as far as it has come, then what is left of its payload. */
    u8 header[14];
    int header_size, header_needs;
    u64 left, message_size;
    int is_final, is_deflated, opcode;
    int due; /* which of the payloads must come next */
    char *response; /* while upgrading */
    size_t response_size;
    u8 *deflated; /* with -z and -v: the compressed message so far */
#ifdef HAVE_ZLIB
    z_stream *inflater;
#endif
};

/* -- options ----------------------------------------------------------------------------------- */

static struct {
    const char *mode, *path, *file;
    int port, connections, outstanding, opcode, concurrency, limit, channels;
    int is_raw, is_deflate, is_verifying, is_fanout;
    size_t size;
    double seconds, warm_up, interval, hold;
    int pids[MAX_PIDS], pid_count;
} opt = {.mode = "echo", .path = "/", .connections = 1, .outstanding = 1, .opcode = TEXT,
         .concurrency = 64, .limit = 60, .size = 32, .seconds = 2, .warm_up = 0.5};

static void usage(void)
{
    fprintf(stderr,
            "usage: wsload -p PORT [options]\n"
            "  -m MODE   echo, fanout or connect      -n N      connections\n"
            "  -s SIZE   payload in bytes             -f FILE   payloads of SIZE each, sent in turn\n"
            "  -P N      outstanding per connection   -i S      or: one message each S seconds\n"
            "  -d S      measured time                -w S      time before it\n"
            "  -u PATH   of the channel               -r        raw TCP, no WebSocket\n"
            "  -b        binary, not text             -z        permessage-deflate\n"
            "  -v        compare every payload        -c N      handshakes at the same time\n"
            "  -H S      connect: hold that long      -S P,...  the server's processes\n"
            "  -C CPU    run on that processor        -T S      time-out of the opening\n"
            "  -k N      N channels in turn: PATH0, PATH1, …\n");
    exit(1);
}

/* -- time, latency, /proc ---------------------------------------------------------------------- */

static u64 now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (u64)t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Latencies in microseconds: exact below 128, then 64 buckets for each doubling (1.6 %). */
static u64 buckets[4096], latencies, slowest;

static int bucket_of(u64 us)
{
    if (us < 128)
        return us;
    int exponent = 63 - __builtin_clzll(us);
    int bucket = 128 + (exponent - 7) * 64 + (int)((us >> (exponent - 6)) - 64);
    return bucket < 4096 ? bucket : 4095;
}

static u64 floor_of(int bucket)
{
    return bucket < 128 ? (u64)bucket
                        : (u64)((bucket - 128) % 64 + 64) << ((bucket - 128) / 64 + 1);
}

static void add_latency(u64 ns)
{
    u64 us = ns / 1000;
    buckets[bucket_of(us)]++;
    latencies++;
    if (us > slowest)
        slowest = us;
}

static u64 quantile(double q)
{
    u64 rank = (u64)(q * latencies), seen = 0;
    for (int i = 0; i < 4096; i++)
        if ((seen += buckets[i]) > rank)
            return floor_of(i);
    return slowest;
}

static u64 process_ns(int pid)
{
    char path[512];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    u64 sum = 0;
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
        unsigned long long ns;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file && fscanf(file, "%llu", &ns) == 1)
            sum += ns;
        if (file)
            fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return sum;
}

static u64 server_ns(void)
{
    u64 sum = 0;
    for (int i = 0; i < opt.pid_count; i++)
        sum += process_ns(opt.pids[i]);
    return sum;
}

static long server_kib(void) /* resident memory */
{
    long sum = 0;
    for (int i = 0; i < opt.pid_count; i++) {
        char path[64], line[256];
        snprintf(path, sizeof path, "/proc/%d/status", opt.pids[i]);
        FILE *file = fopen(path, "r");
        while (file && fgets(line, sizeof line, file))
            if (!strncmp(line, "VmRSS:", 6))
                sum += atol(line + 6);
        if (file)
            fclose(file);
    }
    return sum;
}

static double own_seconds(void)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec +
           (use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
}

/* -- the message ------------------------------------------------------------------------------- */

static u8 *payloads; /* what goes out and must come back, in turn: `kinds` of opt.size bytes each */
static int kinds = 1;
/* Their wire forms one behind the other: small frames go out in one write. That write may reach past
 * the last, so that the first few stand there again. */
static u8 *frames;
static size_t *frame_at; /* where each of them begins, and where the last one ends */
static int copies = 1;   /* frames in one write, at most */

static void make_payloads(void)
{
    FILE *file = opt.file ? fopen(opt.file, "rb") : NULL;
    if (opt.file) {
        long bytes;
        if (!file || fseek(file, 0, SEEK_END) || (bytes = ftell(file)) < (long)opt.size) {
            perror(opt.file);
            exit(2);
        }
        kinds = (int)(bytes / opt.size);
        rewind(file);
    }
    payloads = malloc(kinds * opt.size + 1);
    for (size_t i = 0; i < kinds * opt.size; i++)
        payloads[i] = 'a' + (i * 7 + i / 26) % 26;
    if (file) {
        if (fread(payloads, opt.size, kinds, file) != (size_t)kinds)
            exit(2);
        fclose(file);
    }
}

/* A payload as it goes out, into `out`: compressed with the smallest window, which any server must
 * accept. */
static size_t encode(u8 *plain, u8 *out, size_t room)
{
#ifdef HAVE_ZLIB
    if (opt.is_deflate) {
        z_stream z = {0};
        deflateInit2(&z, 6, Z_DEFLATED, -9, 8, Z_DEFAULT_STRATEGY);
        z.next_in = plain, z.avail_in = opt.size;
        z.next_out = out, z.avail_out = room;
        deflate(&z, Z_SYNC_FLUSH);
        deflateEnd(&z);
        return z.total_out - 4; /* RFC 7692, section 7.2.1: without 00 00 ff ff */
    }
#endif
    (void)room;
    memcpy(out, plain, opt.size);
    return opt.size;
}

static size_t make_frame(u8 *plain, u8 *out, u8 *body, size_t room)
{
    static const u8 key[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t size = encode(plain, body, room), h = 0;
    if (!opt.is_raw) {
        out[h++] = 0x80 | (opt.is_deflate ? 0x40 : 0) | opt.opcode;
        if (size < 126) {
            out[h++] = 0x80 | size;
        } else {
            int bytes = size < 65536 ? 2 : 8;
            out[h++] = 0x80 | (bytes == 2 ? 126 : 127);
            while (bytes--)
                out[h++] = (u8)((u64)size >> (8 * bytes));
        }
        memcpy(out + h, key, 4);
        h += 4;
    }
    for (size_t i = 0; i < size; i++)
        out[h + i] = opt.is_raw ? body[i] : body[i] ^ key[i & 3];
    return h + size;
}

static void make_frames(void)
{
    size_t room = opt.size + opt.size / 2 + 1024, end = 0;
    u8 *body = malloc(room);
    copies = opt.size < 32768 ? opt.outstanding : 1;
    frames = malloc((kinds + copies) * (room + 14));
    frame_at = malloc((kinds + copies + 1) * sizeof *frame_at);
    for (int i = 0; i < kinds + copies; i++) {
        frame_at[i] = end;
        end += make_frame(payloads + i % kinds * opt.size, frames + end, body, room);
    }
    frame_at[kinds + copies] = end;
    free(body);
}

/* -- a connection, out ------------------------------------------------------------------------- */

static struct connection *connections;
static int total, opened, failed, closed, poll_fd;
static char error[200];

static void drop(struct connection *c)
{
    epoll_ctl(poll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
    c->state = CLOSED;
}

static int fail(struct connection *c, const char *what)
{
    if (c->state != CLOSED) {
        failed++;
        if (!error[0])
            snprintf(error, sizeof error, "%s (errno %d)", what, errno);
        drop(c);
    }
    return -1;
}

static void want_out(struct connection *c, int wants)
{
    if (c->wants_out == wants)
        return;
    c->wants_out = wants;
    struct epoll_event e = {.events = EPOLLIN | (wants ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void flush(struct connection *c)
{
    while (c->pending > 0) {
        long count = c->offset ? 1 : c->pending < copies ? c->pending : copies;
        size_t at = frame_at[c->next] + c->offset;
        ssize_t sent =
            send(c->fd, frames + at, frame_at[c->next + count] - at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EINTR)
                want_out(c, 1);
            else
                fail(c, "send");
            return;
        }
        for (at += sent; count && frame_at[c->next + 1] <= at; count--) {
            c->pending--;
            c->next++;
        }
        c->offset = at - frame_at[c->next];
        c->next %= kinds;
    }
    want_out(c, 0);
}

static void send_messages(struct connection *c, int count)
{
    u64 t = now();
    for (int i = 0; i < count; i++) {
        c->sent_at[c->newest] = t;
        c->newest = (c->newest + 1) % MAX_OUTSTANDING;
    }
    c->pending += count;
    flush(c);
}

/* -- a connection, in -------------------------------------------------------------------------- */

static u8 *expected(struct connection *c)
{
    return payloads + c->due * opt.size;
}

static int is_measuring;
static u64 messages;                       /* that came back, measured */
static u64 round_missing, round_last_at;   /* fan-out: deliveries of this message still missing */

static int end_message(struct connection *c)
{
    if (!opt.is_raw && !c->is_deflated && c->message_size != opt.size)
        return fail(c, "wrong length");
    messages += is_measuring;
    c->due = (c->due + 1) % kinds;
    if (opt.is_fanout) {
        if (round_missing && !--round_missing)
            round_last_at = now();
        return 1;
    }
    if (is_measuring)
        add_latency(now() - c->sent_at[c->oldest]);
    c->oldest = (c->oldest + 1) % MAX_OUTSTANDING;
    return 1;
}

static int inflate_message(struct connection *c)
{
#ifdef HAVE_ZLIB
    static u8 *plain;
    if (!plain)
        plain = malloc(opt.size + 1);
    if (!c->inflater) {
        c->inflater = calloc(1, sizeof *c->inflater);
        inflateInit2(c->inflater, -15);
    }
    memcpy(c->deflated + c->message_size, "\x00\x00\xff\xff", 4);
    z_stream *z = c->inflater;
    z->next_in = c->deflated, z->avail_in = c->message_size + 4;
    z->next_out = plain, z->avail_out = opt.size + 1;
    inflate(z, Z_SYNC_FLUSH);
    if (opt.size + 1 - z->avail_out != opt.size || memcmp(plain, expected(c), opt.size))
        return fail(c, "compressed payload differs");
#endif
    return 0;
}

static int start_frame(struct connection *c)
{
    c->left = c->header[1] & 127;
    if (c->header_needs > 2) {
        c->left = 0;
        for (int i = 2; i < c->header_needs; i++)
            c->left = c->left << 8 | c->header[i];
    }
    c->is_final = c->header[0] >> 7;
    c->opcode = c->header[0] & 15;
    c->header_needs = 0;
    if (c->opcode == CLOSE)
        return opt.mode[0] == 'c' ? 0 : fail(c, "close frame");
    if (c->header[0] & (opt.is_deflate ? 0x30 : 0x70))
        return fail(c, "reserved bits");
    if (c->opcode == TEXT || c->opcode == BINARY) {
        if (c->opcode != opt.opcode)
            return fail(c, "wrong opcode");
        c->message_size = 0;
        c->is_deflated = c->header[0] >> 6 & 1;
    }
    return 0;
}

static int take_payload(struct connection *c, const u8 *data, size_t size)
{
    if (c->opcode >= CLOSE)
        return 0;
    if (opt.is_verifying && c->is_deflated) {
        if (!c->deflated)
            c->deflated = malloc(opt.size * 2 + 1024);
        if (c->message_size + size > opt.size * 2 + 1000)
            return fail(c, "wrong length");
        memcpy(c->deflated + c->message_size, data, size);
    } else if (opt.is_verifying &&
               (c->message_size + size > opt.size ||
                memcmp(data, expected(c) + c->message_size, size))) {
        return fail(c, "payload differs");
    }
    c->message_size += size;
    return 0;
}

/* Take what came; the number of messages that it completed, -1 when the connection has failed. */
static int parse(struct connection *c, const u8 *data, size_t size)
{
    int count = 0;
    while (size) {
        while (size && c->header_needs) {
            c->header[c->header_size++] = *data++;
            size--;
            if (c->header_size == 2) {
                if (c->header[1] & 0x80)
                    return fail(c, "masked frame");
                c->header_needs = c->header[1] == 126 ? 4 : c->header[1] == 127 ? 10 : 2;
            }
            if (c->header_size == c->header_needs && start_frame(c) < 0)
                return -1;
        }
        if (c->header_needs)
            break;
        size_t part = c->left < size ? c->left : size;
        if (take_payload(c, data, part) < 0)
            return -1;
        c->left -= part, data += part, size -= part;
        if (c->left)
            break;
        c->header_size = 0, c->header_needs = 2;
        if (c->opcode < CLOSE && c->is_final) {
            if (c->is_deflated && opt.is_verifying && inflate_message(c) < 0)
                return -1;
            if (end_message(c) < 0)
                return -1;
            count++;
        }
    }
    return count;
}

/* Raw TCP: a message is as many bytes as we sent. */
static int parse_raw(struct connection *c, const u8 *data, size_t size)
{
    int count = 0;
    while (size) {
        size_t part = c->left < size ? c->left : size;
        if (opt.is_verifying && memcmp(data, expected(c) + opt.size - c->left, part))
            return fail(c, "payload differs");
        c->left -= part, data += part, size -= part;
        if (!c->left) {
            c->left = opt.size;
            end_message(c);
            count++;
        }
    }
    return count;
}

static int serve(struct connection *c, unsigned events)
{
    static u8 buffer[BUFFER];
    int count = 0;
    for (int turn = 0; events & EPOLLIN && turn < 4; turn++) {
        ssize_t size = recv(c->fd, buffer, BUFFER, MSG_DONTWAIT);
        if (size < 0 && errno == EAGAIN)
            break;
        if (size <= 0) {
            if (opt.mode[0] == 'c') { /* it has answered our close frame */
                closed++;
                drop(c);
                return 0;
            }
            return fail(c, size ? "recv" : "end of stream");
        }
        int more = opt.is_raw ? parse_raw(c, buffer, size) : parse(c, buffer, size);
        if (more < 0)
            return -1;
        count += more;
        if (size < BUFFER)
            break;
    }
    if (!(events & EPOLLIN) && events & (EPOLLHUP | EPOLLERR))
        return fail(c, "hang-up");
    if (c->state == OPEN && events & EPOLLOUT)
        flush(c);
    return count;
}

/* -- opening ----------------------------------------------------------------------------------- */

static int start_connection(struct connection *c)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(opt.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) {
        perror("socket");
        exit(2);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->wants_out = 1;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e);
    if (connect(c->fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS)
        return fail(c, "connect");
    return 0;
}

static void open_connection(struct connection *c)
{
    c->state = OPEN;
    c->header_needs = 2;
    c->left = opt.size; /* for raw TCP */
    opened++;
}

static void read_response(struct connection *c)
{
    enum { LIMIT = 4096 };
    if (!c->response)
        c->response = malloc(LIMIT);
    ssize_t size = recv(c->fd, c->response + c->response_size, LIMIT - 1 - c->response_size, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        fail(c, "end of stream in the handshake");
        return;
    }
    c->response[c->response_size += size] = 0;
    char *end = strstr(c->response, "\r\n\r\n");
    if (!end)
        return;
    if (strncmp(c->response, "HTTP/1.1 101", 12)) {
        snprintf(error, sizeof error, "answered %.40s", strtok(c->response, "\r\n"));
        fail(c, "no 101");
        return;
    }
    if (opt.is_deflate && !strcasestr(c->response, "permessage-deflate")) {
        fail(c, "no compression agreed");
        return;
    }
    open_connection(c);
    size_t rest = c->response + c->response_size - (end + 4);
    if (rest)
        parse(c, (u8 *)end + 4, rest);
    free(c->response);
    c->response = NULL;
}

static void send_request(struct connection *c)
{
    /* what Chromium offers */
    static const char offer[] =
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    char request[1024], channel[12] = "";
    if (opt.channels)
        snprintf(channel, sizeof channel, "%d", (int)(c - connections) % opt.channels);
    int size = snprintf(
        request, sizeof request,
        "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        "%sOrigin: http://127.0.0.1:%d\r\n\r\n",
        opt.path, channel, opt.port, opt.is_deflate ? offer : "", opt.port);
    if (send(c->fd, request, size, MSG_NOSIGNAL) == size)
        c->state = UPGRADING;
    else
        fail(c, "send of the handshake");
}

static void advance(struct connection *c, unsigned events)
{
    if (c->state == CONNECTING) {
        socklen_t size = sizeof errno;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &errno, &size);
        if (errno) {
            fail(c, "connect");
        } else if (events & EPOLLOUT) {
            want_out(c, 0);
            if (opt.is_raw)
                open_connection(c);
            else
                send_request(c);
        }
    } else if (events & EPOLLIN) {
        read_response(c);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        fail(c, "hang-up in the handshake");
    }
}

static int wait_events(struct epoll_event *events, int ms)
{
    int count = epoll_wait(poll_fd, events, EVENTS, ms);
    return count < 0 ? 0 : count;
}

static int open_all(void)
{
    struct epoll_event events[EVENTS];
    u64 deadline = now() + opt.limit * 1000000000ull;
    int started = 0;
    while (opened + failed < total) {
        while (started < total && started - opened - failed < opt.concurrency)
            start_connection(&connections[started++]);
        int count = wait_events(events, 100);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->state == OPEN)
                serve(c, events[i].events);
            else if (c->state != CLOSED)
                advance(c, events[i].events);
        }
        if (now() > deadline) {
            snprintf(error, sizeof error, "only %d connections open in time", opened);
            return -1;
        }
    }
    if (!failed)
        fputs("open\n", stderr); /* for who starts something else beside it */
    return failed ? -1 : 0;
}

/* -- modes ------------------------------------------------------------------------------------- */

static void run_idle(double seconds)
{
    struct epoll_event events[EVENTS];
    for (u64 end = now() + (u64)(seconds * 1e9); now() < end;)
        for (int count = wait_events(events, 20), i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->state == OPEN)
                serve(c, events[i].events);
        }
}

/* Close in steps of `concurrency`, so that both ends are busy and neither is flooded. */
static void close_all(void)
{
    static const u8 bye[] = {0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8}; /* 1000, masked with zeros */
    u64 deadline = now() + opt.limit * 1000000000ull;
    for (int i = 0; i < total && now() < deadline;) {
        for (; i < total && i - closed - failed < opt.concurrency; i++) {
            if (opt.is_raw)
                shutdown(connections[i].fd, SHUT_WR);
            else if (send(connections[i].fd, bye, sizeof bye, MSG_NOSIGNAL) != sizeof bye)
                fail(&connections[i], "send of the close frame");
        }
        run_idle(0.001);
    }
    while (closed + failed < total && now() < deadline)
        run_idle(0.01);
}

static int run_connect(void)
{
    long kib = server_kib();
    u64 cpu = server_ns(), start = now();
    if (open_all() < 0) {
        printf("{\"mode\": \"connect\", \"error\": \"%s\"}\n", error);
        return 3;
    }
    double seconds = (now() - start) / 1e9;
    double connect_us = (server_ns() - cpu) / 1e3 / total;
    run_idle(0.3 + opt.hold);
    double kib_each = (double)(server_kib() - kib) / total;
    cpu = server_ns();
    run_idle(1);
    double idle_percent = (server_ns() - cpu) / 1e7;
    cpu = server_ns();
    close_all();
    run_idle(0.2);
    printf("{\"mode\": \"connect\", \"connections\": %d, \"rate\": %.0f, \"connect_us\": %.2f, "
           "\"close_us\": %.2f, \"kib\": %.3f, \"idle_percent\": %.3f, \"errors\": %d, "
           "\"error\": \"%s\"}\n",
           total, total / seconds, connect_us, (server_ns() - cpu) / 1e3 / total, kib_each,
           idle_percent, failed, error);
    return failed ? 4 : 0;
}

static void send_due(u64 t)
{
    for (int i = 0; i < total; i++) {
        struct connection *c = &connections[i];
        if (c->state == OPEN && t >= c->next_at && c->newest == c->oldest) {
            send_messages(c, 1);
            c->next_at = t + (u64)(opt.interval * 1e9);
        }
    }
}

static int run_load(void)
{
    struct epoll_event events[EVENTS];
    struct connection *publisher = &connections[total - 1];
    if (open_all() < 0) {
        printf("{\"mode\": \"%s\", \"error\": \"%s\"}\n", opt.mode, error);
        return 3;
    }
    run_idle(0.1);
    u64 begin = now() + (u64)(opt.warm_up * 1e9), end = begin + (u64)(opt.seconds * 1e9);
    u64 deadline = end + 20000000000ull, round_at = 0, cpu = 0;
    double own = 0;
    for (int i = 0; !opt.is_fanout && !opt.interval && i < total; i++)
        send_messages(&connections[i], opt.outstanding);
    while (!failed) {
        u64 t = now();
        int is_between = !opt.is_fanout || !round_missing; /* rounds are measured whole */
        if (!is_measuring && is_between && t >= begin) {
            is_measuring = 1;
            cpu = server_ns();
            own = own_seconds();
            begin = now();
            end = begin + (u64)(opt.seconds * 1e9); /* a round before may have taken longer */
            deadline = end + 20000000000ull;
        }
        if (is_measuring && is_between && t >= end)
            break;
        if (t > deadline) {
            snprintf(error, sizeof error, "stalled");
            failed++;
            break;
        }
        if (opt.is_fanout && !round_missing) {
            round_missing = total;
            round_at = now();
            send_messages(publisher, 1);
        }
        if (opt.interval)
            send_due(t);
        int count = wait_events(events, opt.interval ? 1 : 50);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            int messages = c->state == OPEN ? serve(c, events[i].events) : 0;
            if (messages > 0 && !opt.is_fanout && !opt.interval)
                send_messages(c, messages);
        }
        if (opt.is_fanout && !round_missing && is_measuring)
            add_latency(round_last_at - round_at);
    }
    double seconds = (now() - begin) / 1e9, used = (server_ns() - cpu) / 1e9;
    printf("{\"mode\": \"%s\", \"connections\": %d, \"messages\": %llu, \"rate\": %.1f, "
           "\"cpu_us\": %.4f, \"p50_us\": %llu, \"p99_us\": %llu, \"max_us\": %llu, "
           "\"server_percent\": %.1f, \"client_percent\": %.1f, \"errors\": %d, "
           "\"error\": \"%s\"}\n",
           opt.mode, total - opt.is_fanout, (unsigned long long)messages, messages / seconds,
           messages ? used * 1e6 / messages : 0, (unsigned long long)quantile(.5),
           (unsigned long long)quantile(.99), (unsigned long long)slowest, 100 * used / seconds,
           100 * (own_seconds() - own) / seconds, failed, error);
    return failed ? 4 : 0;
}

/* -- the command ------------------------------------------------------------------------------- */

static void read_options(int argc, char **argv)
{
    cpu_set_t cpus;
    for (int option; (option = getopt(argc, argv, "p:m:n:s:f:P:i:d:w:u:k:rbzvc:H:S:C:T:")) > 0;)
        switch (option) {
        case 'p': opt.port = atoi(optarg); break;
        case 'm': opt.mode = optarg; break;
        case 'n': opt.connections = atoi(optarg); break;
        case 's': opt.size = atol(optarg); break;
        case 'f': opt.file = optarg; break;
        case 'P': opt.outstanding = atoi(optarg); break;
        case 'i': opt.interval = atof(optarg); break;
        case 'd': opt.seconds = atof(optarg); break;
        case 'w': opt.warm_up = atof(optarg); break;
        case 'u': opt.path = optarg; break;
        case 'k': opt.channels = atoi(optarg); break;
        case 'r': opt.is_raw = 1; break;
        case 'b': opt.opcode = BINARY; break;
        case 'z': opt.is_deflate = 1; break;
        case 'v': opt.is_verifying = 1; break;
        case 'c': opt.concurrency = atoi(optarg); break;
        case 'H': opt.hold = atof(optarg); break;
        case 'T': opt.limit = atoi(optarg); break;
        case 'S':
            for (char *pid = strtok(optarg, ","); pid && opt.pid_count < MAX_PIDS;
                 pid = strtok(NULL, ","))
                opt.pids[opt.pid_count++] = atoi(pid);
            break;
        case 'C':
            CPU_ZERO(&cpus);
            CPU_SET(atoi(optarg), &cpus);
            sched_setaffinity(0, sizeof cpus, &cpus);
            break;
        default: usage();
        }
    if (!opt.port || opt.outstanding > MAX_OUTSTANDING)
        usage();
#ifndef HAVE_ZLIB
    if (opt.is_deflate) {
        printf("{\"error\": \"compiled without zlib\"}\n");
        exit(3);
    }
#endif
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    read_options(argc, argv);
    opt.is_fanout = !strcmp(opt.mode, "fanout");
    total = opt.connections + opt.is_fanout;
    /* Whatever happens, it ends. */
    alarm((unsigned)(opt.limit * 2 + opt.seconds + opt.warm_up + opt.hold + 30));
    make_payloads();
    make_frames();
    connections = calloc(total, sizeof *connections);
    poll_fd = epoll_create1(0);
    return !strcmp(opt.mode, "connect") ? run_connect() : run_load();
}
