/* An everyday message in C: read from the socket, handed to the listener's callback as `str` or
 * `bytes`, and its reply sent as a frame. net/stream.py is the same in Python, name by name;
 * `Connection` derives from either. Imported by speedups.py only.
 *
 * The law of WebSocket frames stays in protocol/engine.py. What is read here are whole text and
 * binary messages, masked, in one frame, no larger than allowed, valid UTF-8; compressed ones where
 * that was agreed, by protocol/deflate.py. At the first byte that is anything else `Connection.take`
 * gets the bytes from that frame's first one on, as they came, and the Python engine goes on with
 * them: it alone answers, refuses or waits. In the same way `work` in serving.c does the everyday part
 * of `Connection.work` and leaves the rest to it.
 *
 * All of it runs with the GIL, except zlib. No call here blocks, and all streams of a thread share one
 * receive buffer.
 */
#ifndef WSMIDDLEWARE_STREAM_H
#define WSMIDDLEWARE_STREAM_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum {
    BUFFER_SIZE = 1 << 19,  /* against half of it: saves 11 % of 64 KiB, batch 16 */
    LARGE = 1 << 14,        /* from here on a frame is not copied where that can be avoided */
    MAX_PENDING = 1 << 16,  /* bytes of replies that share a write */
    MAX_FRAMES = 256,       /* of one read: then other connections are served */
    MIN_INFLATING = 4,      /* compressed frames of one read, however long they take */
    MAX_INFLATING = 100,    /* µs of one read: few compressed bytes may be much work */
    MAX_INFLATED = 1 << 16, /* bytes of one read: the engine takes more, it knows when to pause */
    MAX_DEFLATED = MAX_INFLATED / 8, /* bytes of one message: few shrink to an eighth */
    MAX_HEADER = 14,
    FORMS = 16,             /* of a message, one for each window: RFC 7692 section 7.1.2.1 */
    TEXT = 0x81,            /* FIN and the opcode, RFC 6455 section 5.2 */
    BINARY = 0x82,
    COMPRESSED = 0x40,      /* RSV1, RFC 7692 section 6 */
};

/* What a read has brought. */
typedef enum { FAILED = -1, NOTHING, SOMETHING, END } Found;

/* The counters that C increments: the base of metrics.Metrics. */
typedef struct {
    PyObject_HEAD
    unsigned long long messages_received, messages_sent;
} Counts;

typedef struct Stream Stream;

/* The time, the pool of workers, and the streams that wait for one, as a linked list that owns a
 * reference to each. The base of net/reactor.py's Reactor. */
typedef struct {
    PyObject_HEAD
    double now;
    PyObject *pool;
    Stream *first, *last;
    char is_submitted;
} Ready;

struct Stream {
    PyObject_HEAD
    /* A broadcast reads the first 128 bytes only; `fetch_ahead` prefetches them. */
    int fd;            /* -1 where Python alone reads and writes: TLS, a trace, a rate, a client */
    char is_open;      /* false once nothing may be sent */
    char is_engines;   /* the engine is in the middle of a message: it gets all input */
    char is_slice_over; /* the rest of the last read waits for the next turn of the loop */
    char is_paused;    /* reading has paused */
    char is_ending;    /* the peer's close frame, or a violation, has come */
    char is_ready;     /* waits for a worker; `next` is the stream behind it */
    char is_flush_due; /* the hub has been asked to flush */
    int window_bits;   /* of the agreed compression, 0 without one */
    /* Frames of replies that will share a write. Only while the outbox is empty. */
    unsigned char *pending;
    PyObject *outbox;
    Ready *reactor;
    unsigned long long bytes_received, bytes_written;
    double last_received, last_message; /* when bytes came; when a message came or went */
    size_t pending_size, pending_room;
    Py_ssize_t max_size, mark;
    double time_slice, timeout;
    /* Messages that wait for a worker; those that it is at, in reverse; the worker itself. */
    PyObject *inbox, *due, *worker;
    Stream *next;
    Counts *metrics;
    /* From `serve_for` to `stop`. */
    PyObject *member, *listener, *client, *context, *text_name, *binary_name;
    /* The bytes of a header or small frame that is not complete, as they came. */
    unsigned char *kept;
    size_t kept_size;
    /* A text frame or large frame that is not complete: its header, and its payload so far, unmasked.
     * Text stays here only while it is ASCII. */
    PyObject *message;
    unsigned char header[MAX_HEADER];
    size_t header_size, length, done;
};

#pragma GCC visibility push(hidden)

/* Attributes and methods of Python objects that C uses by name. */
#define FOR_EACH_NAME(X) \
    X(answer, "answer") \
    X(broken, "broken") \
    X(encode, "encode") \
    X(enqueue, "enqueue") \
    X(failed, "failed") \
    X(flush, "flush") \
    X(flush_soon, "flush_soon") \
    X(forget, "forget_locals") \
    X(lost, "lost") \
    X(pause_if_needed, "pause_if_needed") \
    X(read, "read") \
    X(reply_lost, "reply_lost") \
    X(run_ready, "_run_ready") \
    X(submit, "submit") \
    X(take, "take") \
    X(try_send, "try_send") \
    X(wire, "wire") \
    X(work, "work") \
    X(write, "write")

#define DECLARE(name, text) PyObject *name;
typedef struct { FOR_EACH_NAME(DECLARE) } Names;
extern Names names;

/* An attribute that a class has in its `__slots__`, read and written at its offset. Against a look-up
 * by name: saves 5 % of 32 B, batch 1. */
typedef struct {
    const char *name;
    PyTypeObject *type; /* of the last object that was asked; `offset` is the slot's place in it */
    Py_ssize_t offset;
} Slot;

#define FOR_EACH_SLOT(X) \
    X(connection, "connection") \
    X(deadline, "deadline") \
    X(greenlet, "greenlet") \
    X(is_busy, "is_busy") \
    X(is_fresh, "is_fresh") \
    X(links, "links") \
    X(size, "size")

#define DECLARE_SLOT(name, text) Slot name;
typedef struct { FOR_EACH_SLOT(DECLARE_SLOT) } Slots;
extern Slots slots;

extern _Thread_local unsigned char buffer[BUFFER_SIZE + LARGE];
/* Set by `use_deflate`, for protocol/deflate.py: the function that inflates a message, and the size in
 * bytes from which on a message is deflated. */
extern PyObject *decompress;
extern Py_ssize_t min_compress_size;
extern PyTypeObject counts_type, ready_type, stream_type, utf8_type;

/* serving.c */
double now(void);

/* slots.c */
PyObject *get_slot(Slot *slot, PyObject *object);
PyObject *peek_slot(const Slot *slot, PyObject *object);
int set_slot(Slot *slot, PyObject *object, PyObject *value);

/* masking.c */
unsigned char unmask(unsigned char *to, const unsigned char *from, size_t size,
                     const unsigned char *key, size_t offset);
PyObject *apply_mask(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* reading.c */
Found read_some(Stream *self, PyObject *messages, PyObject **rest);

/* frames.c */
size_t make_header(unsigned char *header, int first, uint64_t size);
PyObject *make_wire(const unsigned char *header, size_t header_size, PyObject *owner,
                    const char *payload, Py_ssize_t size);
PyObject *view_text(PyObject *text, const char *data, Py_ssize_t size);
PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* sending.c */
#if PY_VERSION_HEX < 0x030C0000
PyObject *PyErr_GetRaisedException(void);
void PyErr_SetRaisedException(PyObject *exception);
#endif
int call(PyObject *object, PyObject *method, PyObject *argument);
int tell(Stream *self, PyObject *method);
int flush_pending(Stream *self);
int flush_outbox(Stream *self);
int answer(Stream *self, PyObject *reply, int is_last);
PyObject *Stream_enqueue_pending(Stream *self, PyObject *ignored);
PyObject *deliver(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* serving.c */
PyObject *Stream_receive(Stream *self, PyObject *ignored);
Stream *take_first(Ready *self);
PyObject *Ready_resubmit(Ready *self, PyObject *ignored);
PyObject *Ready_run_ready(Ready *self, PyObject *worker);
PyObject *Stream_make_ready(Stream *self, PyObject *ignored);
PyObject *Stream_serve(Stream *self, PyObject *worker);

#pragma GCC visibility pop

#endif
