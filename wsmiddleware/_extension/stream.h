/* The way of an everyday message in C: from the socket to `str` or `bytes`, through the listener's
 * callback, and from there to the bytes of a frame. net/stream.py is the same in Python, name by name;
 * `Connection` derives from either. Imported by speedups.py only.
 *
 * The law of WebSocket frames stays in protocol/engine.py. What is read here are whole text and
 * binary messages, masked, in one frame, no larger than allowed, valid UTF-8; compressed ones where
 * that was agreed, by protocol/deflate.py. At the first byte that is anything else `Connection.take`
 * gets the bytes from that frame's first one on, as they came, and the Python engine goes on with
 * them: it alone answers, refuses or waits. In the same way `work` in serving.c does the everyday part
 * of `Connection.work` and leaves the rest to it.
 *
 * The GIL is held, but while zlib works: no call here blocks, and all share one receive buffer.
 */
#ifndef WSMIDDLEWARE_STREAM_H
#define WSMIDDLEWARE_STREAM_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

enum {
    BUFFER_SIZE = 1 << 19,  /* several messages of 64 KiB: half of it costs them an eighth more */
    LARGE = 1 << 14,        /* from here on a frame is not copied where that can be avoided */
    MAX_PENDING = 1 << 16,  /* replies of one turn that share a write */
    MAX_FRAMES = 256,       /* of one read: then others get their turn */
    MIN_INFLATING = 4,      /* of these frames, however long they take */
    MAX_INFLATING = 100,    /* µs of one read: few bytes may be much work, whatever comes out */
    MAX_INFLATED = 1 << 16, /* bytes of one read: more is the engine's, which knows when to pause */
    MAX_DEFLATED = MAX_INFLATED / 8, /* of one message: few get that much shorter */
    MAX_HEADER = 14,
    FORMS = 16,             /* of a message: a window has up to 15 bits, RFC 7692 section 7.1.2.1 */
    TEXT = 0x81,            /* FIN and the opcode, RFC 6455 section 5.2 */
    BINARY = 0x82,
    COMPRESSED = 0x40,      /* RSV1, RFC 7692 section 6 */
};

/* What a read has brought. */
typedef enum { FAILED = -1, NOTHING, SOMETHING, END } Found;

/* What is counted here, for whoever reads it: the base of metrics.Metrics. */
typedef struct {
    PyObject_HEAD
    unsigned long long messages_received, messages_sent;
} Counts;

typedef struct Stream Stream;

/* The streams that wait for a worker, in a chain that holds each of them, the pool that has workers,
 * and the time: the base of net/reactor.py's Reactor. */
typedef struct {
    PyObject_HEAD
    double now;
    PyObject *pool;
    Stream *first, *last;
    char is_submitted;
} Ready;

struct Stream {
    PyObject_HEAD
    /* What a broadcast looks at, in the first 128 bytes: `fetch_ahead`. */
    int fd;            /* -1 where Python alone reads and writes: TLS, a trace, a rate, a client */
    char is_open;      /* false once nothing may be sent any more */
    char is_engines;   /* the engine is in the middle of something: what comes is for it */
    char is_slice_over; /* what was left of the last read is for the next turn of the loop */
    char is_paused;    /* input is left where it is for the moment */
    char is_ending;    /* the peer's last has come */
    char is_ready;     /* waits for a worker, and `next` behind it */
    char is_flush_due; /* the hub has been asked to send what shares a write */
    int window_bits;   /* of the agreed compression, 0 without one */
    /* Replies that share a write: frames, while nothing waits in the outbox. */
    unsigned char *pending;
    PyObject *outbox;
    Ready *reactor;
    unsigned long long bytes_received, bytes_written;
    double last_received, last_message; /* when something has come, a message come or gone */
    size_t pending_size, pending_room;
    Py_ssize_t max_size, mark;
    double time_slice, timeout;
    /* What has come, what of it is due (in reverse), and who runs the callbacks now. */
    PyObject *inbox, *due, *worker;
    Stream *next;
    Counts *metrics;
    /* From `serve_for` to `stop`. */
    PyObject *member, *listener, *client, *context, *text_name, *binary_name;
    /* A header, or a small frame, that is not complete: its bytes as they came. */
    unsigned char *kept;
    size_t kept_size;
    /* Text, or a large one: its header, and its message as far as it has come: unmasked, ASCII if
     * text. */
    PyObject *message;
    unsigned char header[MAX_HEADER];
    size_t header_size, length, done;
};

#pragma GCC visibility push(hidden)

/* What is asked for by name. */
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

/* What Python keeps in a slot of a class (`__slots__`), taken from where it lies: by name it is 30 ns
 * each time, and an echo needs a dozen, 5 % of it. */
typedef struct {
    const char *name;
    PyTypeObject *type; /* of the last object that was asked, and where the slot lies in it */
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
/* What protocol/deflate.py gives by `use_deflate`: how a message is inflated, and from how many bytes
 * on one is deflated. */
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
