/* Compiled in front of each file of the extension, for sanitizers only: see sanitized.py.
 *
 * All streams share a buffer of half a MiB, so who reads too far in it stays inside. Here what lies
 * behind the bytes that have come is out of bounds, until more is received or copied to there. */
#include "stream.h"

#include <string.h>
#include <sys/socket.h>

/* <sanitizer/asan_interface.h>, which not every clang comes with. */
void __asan_poison_memory_region(const volatile void *start, size_t size);
void __asan_unpoison_memory_region(const volatile void *start, size_t size);

static inline ssize_t fenced_recv(int fd, unsigned char *to, size_t size, int flags)
{
    __asan_unpoison_memory_region(to, size);
    ssize_t got = recv(fd, to, size, flags);
    if (got >= 0)
        __asan_poison_memory_region(to + got, size - got);
    return got;
}

static inline void *fenced_memcpy(void *to, const void *from, size_t size)
{
    unsigned char *at = to;
    if (at >= buffer && at < buffer + sizeof(buffer))
        __asan_unpoison_memory_region(at, Py_MIN(size, (size_t)(buffer + sizeof(buffer) - at)));
    return memcpy(to, from, size);
}

#define recv fenced_recv
#define memcpy fenced_memcpy
