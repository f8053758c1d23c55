/* The floor: raw TCP by epoll, no WebSocket. What comes is sent back, or with "fanout" to everyone.
 *
 *     floor PORT [fanout]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 512, BUFFER = 1 << 20, MAX_FD = 1 << 17 };

static char buffer[BUFFER];
static int members[MAX_FD], place_of[MAX_FD], count;

static void send_all(int fd, const char *data, ssize_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            if (poll(&p, 1, 1000) <= 0 || p.revents & (POLLERR | POLLHUP))
                return;
            continue;
        }
        data += sent, size -= sent;
    }
}

int main(int argc, char **argv)
{
    int one = 1, is_fanout = argc > 2, poll_fd = epoll_create1(0);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024))
        return 1;
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int ready = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0 || fd >= MAX_FD)
                    continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                members[place_of[fd] = count++] = fd;
                e.data.fd = fd;
                epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
                continue;
            }
            ssize_t size = recv(fd, buffer, BUFFER, 0);
            if (size <= 0) {
                int last = members[--count];
                members[place_of[last] = place_of[fd]] = last;
                close(fd);
            } else if (is_fanout) {
                for (int m = 0; m < count; m++)
                    send_all(members[m], buffer, size);
            } else {
                send_all(fd, buffer, size);
            }
        }
    }
}
