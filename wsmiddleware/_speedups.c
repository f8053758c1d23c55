/* The way of a message that has nothing special about it, in C: from the socket to `str` or
 * `bytes`, and from there to the bytes of a frame. Imported by speedups.py only.
 *
 * The law of WebSocket frames stays in protocol/engine.py. What is read here are whole text and
 * binary messages, masked, uncompressed, in one frame, no larger than allowed, valid UTF-8. At the
 * first byte that is anything else `Stream.read` gives back the bytes from that frame's first one
 * on, as they came, and the Python engine goes on with them: it alone answers, refuses or waits.
 *
 * The GIL is held throughout: no call here blocks, and all share one receive buffer.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <structmember.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    BUFFER_SIZE = 1 << 18, /* a 64 KiB message is mostly there at once: one call of recv, not two */
    LARGE = 1 << 14,       /* from here on a frame is not copied where that can be avoided */
    MAX_PENDING = 1 << 16, /* replies of one turn that share a write */
    MAX_FRAMES = 256,      /* of one read: then others get their turn */
    MAX_HEADER = 14,
    TEXT = 0x81, /* FIN and the opcode, RFC 6455 section 5.2 */
    BINARY = 0x82,
};

static unsigned char buffer[BUFFER_SIZE + LARGE];

typedef struct {
    PyObject_HEAD
    int fd;
    char is_open;  /* the connection's state, as must be known before something is sent */
    char has_sent; /* a message has gone since somebody has looked */
    Py_ssize_t max_size, mark;
    double turn;
    int window_bits; /* of the agreed compression, 0 without one: then `encode` makes the frames */
    unsigned long long bytes_received, bytes_sent, replies;
    PyObject *callback; /* the name of the one that `serve` has called last */
    /* Replies that share a write: frames, while nothing waits in the outbox. */
    unsigned char *pending;
    size_t pending_size, pending_room;
    /* A header, or a small binary frame, that is not complete: its bytes as they came. */
    unsigned char *kept;
    size_t kept_size;
    /* Text, or a large one: its header, and its message as far as it has come, unmasked, ASCII if text. */
    PyObject *message;
    unsigned char header[MAX_HEADER];
    size_t header_size, length, done;
} Stream;

/* -- frames ------------------------------------------------------------------------------------ */

/* Eight bytes at a time; the compiler makes vectors of it. Gives the OR of all bytes. */
static unsigned char unmask(unsigned char *to, const unsigned char *from, size_t size,
                            const unsigned char *key, size_t turn)
{
    unsigned char turned[8];
    uint64_t word, wide, seen = 0;
    size_t i = 0;
    for (int k = 0; k < 8; k++)
        turned[k] = key[(turn + k) & 3];
    memcpy(&wide, turned, 8);
    for (; i + 8 <= size; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= wide;
        seen |= word;
        memcpy(to + i, &word, 8);
    }
    for (; i < size; i++)
        seen |= to[i] = from[i] ^ turned[i & 7];
    return (seen & 0x8080808080808080u) != 0 ? 0x80 : 0;
}

typedef enum { WHOLE, CUT, OTHER } Look;

/* What starts here: a frame that is ours, one that may become it, or something for the engine. */
static Look look(const Stream *self, const unsigned char *data, size_t size, size_t *header,
                 size_t *length)
{
    *header = MAX_HEADER;
    *length = 0;
    if (data[0] != TEXT && data[0] != BINARY)
        return OTHER;
    if (size < 2)
        return CUT;
    size_t field = data[1] & 127;
    if (!(data[1] & 128))
        return OTHER;
    *header = field < 126 ? 6 : field == 126 ? 8 : 14;
    if (size < *header - 4)
        return CUT;
    if (field < 126) {
        *length = field;
    } else {
        for (size_t i = 2; i < *header - 4; i++) {
            if (*length >> 40)
                return OTHER;
            *length = *length << 8 | data[i];
        }
        if (*length < (field == 126 ? 126u : 65536u))
            return OTHER; /* not the shortest form */
    }
    if (*length > (size_t)self->max_size)
        return OTHER;
    return size < *header || size - *header < *length ? CUT : WHOLE;
}

/* The message of a whole frame, unmasked where it lies; NULL with UnicodeDecodeError. */
static PyObject *make_message(unsigned char *frame, size_t header, size_t length)
{
    unsigned char *payload = frame + header, *key = payload - 4;
    if (frame[0] == TEXT) {
        PyObject *text = PyUnicode_New(length, 127);
        /* Where it stays, if it is ASCII: a tenth of an echo of 64 KiB. */
        if (!text || !length || !unmask(PyUnicode_1BYTE_DATA(text), payload, length, key, 0))
            return text;
        Py_DECREF(text);
        unmask(payload, payload, length, key, 0);
        return PyUnicode_DecodeUTF8((char *)payload, length, NULL);
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, length);
    if (data)
        unmask((unsigned char *)PyBytes_AS_STRING(data), payload, length, key, 0);
    return data;
}

/* -- a message piece by piece ------------------------------------------------------------------ */

static unsigned char *room(const Stream *self)
{
    return self->header[0] == TEXT ? PyUnicode_1BYTE_DATA(self->message)
                                   : (unsigned char *)PyBytes_AS_STRING(self->message);
}

static size_t capacity(const Stream *self)
{
    return self->header[0] == TEXT ? PyUnicode_GET_LENGTH(self->message)
                                   : PyBytes_GET_SIZE(self->message);
}

/* Space grows with what has come, never with what a header promises. */
static int grow(Stream *self, size_t size)
{
    if (size > self->length)
        size = self->length;
    if (!self->message)
        self->message = self->header[0] == TEXT ? PyUnicode_New(size, 127)
                                                : PyBytes_FromStringAndSize(NULL, size);
    else if (self->header[0] == TEXT ? PyUnicode_Resize(&self->message, size)
                                     : _PyBytes_Resize(&self->message, size))
        Py_CLEAR(self->message);
    return self->message ? 0 : -1;
}

/* What has come of the frame, as it came: for the engine. */
static PyObject *give_back(Stream *self)
{
    PyObject *raw = PyBytes_FromStringAndSize(NULL, self->header_size + self->done);
    if (raw) {
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(raw);
        memcpy(to, self->header, self->header_size);
        unmask(to + self->header_size, room(self), self->done,
               self->header + self->header_size - 4, 0);
    }
    Py_CLEAR(self->message);
    return raw;
}

static PyObject *with_rest(PyObject *messages, PyObject *rest)
{
    PyObject *both = messages && rest ? PyTuple_Pack(2, messages, rest) : NULL;
    Py_XDECREF(messages);
    Py_XDECREF(rest);
    return both;
}

static int start_large(Stream *self, const unsigned char *frame, size_t size, size_t header,
                       size_t length)
{
    memcpy(self->header, frame, header);
    self->header_size = header;
    self->length = length;
    self->done = size - header;
    if (grow(self, self->done < BUFFER_SIZE / 2 ? BUFFER_SIZE : 2 * self->done) < 0)
        return -1;
    return unmask(room(self), frame + header, self->done, self->header + header - 4, 0) != 0;
}

/* -- reading ----------------------------------------------------------------------------------- */

static ssize_t receive(Stream *self, unsigned char *to, size_t size)
{
    ssize_t got = recv(self->fd, to, size, MSG_DONTWAIT);
    if (got > 0)
        self->bytes_received += got;
    return got;
}

/* None where there is nothing yet, b"" at the end of the stream; or OSError. */
static PyObject *nothing(ssize_t got)
{
    if (got == 0)
        return PyBytes_FromStringAndSize(NULL, 0);
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        Py_RETURN_NONE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *read_large(Stream *self)
{
    if (self->done == capacity(self) && grow(self, 2 * self->done) < 0)
        return NULL;
    unsigned char *to = room(self) + self->done;
    ssize_t got = receive(self, to, capacity(self) - self->done);
    if (got <= 0)
        return nothing(got);
    unsigned char high =
        unmask(to, to, got, self->header + self->header_size - 4, self->done);
    self->done += got;
    if (high && self->header[0] == TEXT)
        return with_rest(PyList_New(0), give_back(self));
    PyObject *messages = PyList_New(0);
    if (messages && self->done == self->length) {
        if (PyList_Append(messages, self->message) < 0)
            Py_CLEAR(messages);
        Py_CLEAR(self->message);
    }
    return messages;
}

static int keep(Stream *self, const unsigned char *data, size_t size)
{
    self->kept = PyMem_Malloc(size);
    if (!self->kept) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(self->kept, data, size);
    self->kept_size = size;
    return 0;
}

static PyObject *parse(Stream *self, unsigned char *data, size_t size)
{
    PyObject *messages = PyList_New(0);
    size_t pos = 0, header, length;
    for (int frames = 0; messages && pos < size; frames++) {
        Look found = look(self, data + pos, size - pos, &header, &length);
        if (found == WHOLE && frames < MAX_FRAMES) {
            PyObject *message = make_message(data + pos, header, length);
            if (message && PyList_Append(messages, message) == 0) {
                Py_DECREF(message);
                pos += header + length;
                continue;
            }
            Py_XDECREF(message);
            if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
                Py_CLEAR(messages);
                break;
            }
            PyErr_Clear();
            unmask(data + pos + header, data + pos + header, length, data + pos + header - 4, 0);
        } else if (found == CUT && (size - pos < header ||
                                    (data[pos] == BINARY && header + length <= LARGE))) {
            /* Not text: of that every byte is looked at as it comes, which start_large does. */
            if (keep(self, data + pos, size - pos) < 0)
                Py_CLEAR(messages);
            break;
        } else if (found == CUT) {
            int is_wide = start_large(self, data + pos, size - pos, header, length);
            if (is_wide < 0)
                Py_CLEAR(messages);
            else if (is_wide && data[pos] == TEXT)
                return with_rest(messages, give_back(self));
            break;
        }
        return with_rest(messages,
                         PyBytes_FromStringAndSize((char *)data + pos, size - pos));
    }
    return messages;
}

PyDoc_STRVAR(read_doc,
             "Receive once, without waiting. A list of messages; or a tuple of such a list and of\n"
             "the bytes behind them, for the engine; `None` where nothing has come, b\"\" at the\n"
             "end of the stream. Raises `OSError`.");

static PyObject *Stream_read(Stream *self, PyObject *ignored)
{
    (void)ignored;
    if (self->message)
        return read_large(self);
    size_t kept = 0;
    if (self->kept)
        kept = self->kept_size;
    ssize_t got = receive(self, buffer + kept, BUFFER_SIZE);
    if (got <= 0)
        return nothing(got);
    if (self->kept) {
        memcpy(buffer, self->kept, kept);
        PyMem_Free(self->kept);
        self->kept = NULL;
    }
    return parse(self, buffer, kept + got);
}

/* -- writing ----------------------------------------------------------------------------------- */

static size_t make_header(unsigned char *header, int first, size_t size)
{
    header[0] = first;
    if (size < 126) {
        header[1] = size;
        return 2;
    }
    int bytes = size < 65536 ? 2 : 8;
    header[1] = bytes == 2 ? 126 : 127;
    for (int i = 0; i < bytes; i++)
        header[2 + i] = size >> (8 * (bytes - 1 - i));
    return 2 + bytes;
}

/* The UTF-8 of a `str` as a buffer: of ASCII the string's own bytes, no copy. */
typedef struct {
    PyObject_HEAD
    PyObject *text;
    const char *data;
    Py_ssize_t size;
} Utf8;

static int Utf8_getbuffer(Utf8 *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, (void *)self->data, self->size, 1, flags);
}

static void Utf8_dealloc(Utf8 *self)
{
    Py_XDECREF(self->text);
    PyObject_Free(self);
}

static PyBufferProcs utf8_buffer = {.bf_getbuffer = (getbufferproc)Utf8_getbuffer};

static PyTypeObject utf8_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Utf8",
    .tp_basicsize = sizeof(Utf8),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)Utf8_dealloc,
    .tp_as_buffer = &utf8_buffer,
};

static PyObject *view_text(PyObject *text, const char *data, Py_ssize_t size)
{
    Utf8 *utf8 = PyObject_New(Utf8, &utf8_type);
    if (!utf8)
        return NULL;
    Py_INCREF(text);
    utf8->text = text, utf8->data = data, utf8->size = size;
    PyObject *view = PyMemoryView_FromObject((PyObject *)utf8);
    Py_DECREF(utf8);
    return view;
}

/* A frame in one piece; from LARGE on its header, and its payload without a copy. Without a header
 * `owner` is all of it. */
static PyObject *make_wire(const unsigned char *header, size_t header_size, PyObject *owner,
                           const char *payload, Py_ssize_t size)
{
    if (!header_size)
        return Py_NewRef(owner);
    if (size >= LARGE) {
        PyObject *body = PyUnicode_Check(owner)      ? view_text(owner, payload, size)
                         : PyBytes_CheckExact(owner) ? (Py_INCREF(owner), owner)
                                                     : PyBytes_FromStringAndSize(payload, size);
        return body ? Py_BuildValue("(y#N)", header, (Py_ssize_t)header_size, body) : NULL;
    }
    PyObject *wire = PyBytes_FromStringAndSize(NULL, header_size + size);
    if (wire) {
        memcpy(PyBytes_AS_STRING(wire), header, header_size);
        memcpy(PyBytes_AS_STRING(wire) + header_size, payload, size);
    }
    return wire;
}

static PyObject *pack_payload(PyObject *owner, const char *payload, Py_ssize_t size)
{
    unsigned char header[MAX_HEADER];
    size_t header_size = make_header(header, PyUnicode_Check(owner) ? TEXT : BINARY, size);
    return make_wire(header, header_size, owner, payload, size);
}

PyDoc_STRVAR(pack_doc,
             "pack(data, compress=None): the wire form of a `str` or of bytes, one frame, unmasked\n"
             "and never compressed; from 16 KiB on its header and its payload, which is not copied.\n"
             "Raises `UnicodeEncodeError`, and `TypeError` for what is no message.");

static PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    Py_ssize_t size;
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "pack() takes one message, and a word on compression");
        return NULL;
    }
    PyObject *data = args[0];
    if (PyUnicode_Check(data)) {
        const char *utf8 = PyUnicode_AsUTF8AndSize(data, &size);
        return utf8 ? pack_payload(data, utf8, size) : NULL;
    }
    if (PyBytes_CheckExact(data))
        return pack_payload(data, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data));
    if (!PyBytes_Check(data) && !PyByteArray_Check(data) && !PyMemoryView_Check(data)) {
        PyErr_Format(PyExc_TypeError, "a message is str or bytes-like, not %s",
                     Py_TYPE(data)->tp_name);
        return NULL;
    }
    PyObject *copy = PyBytes_FromObject(data); /* it may change before it has gone */
    if (!copy)
        return NULL;
    PyObject *wire = pack_payload(copy, PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy));
    Py_DECREF(copy);
    return wire;
}

/* -- sending ----------------------------------------------------------------------------------- */

static PyObject *name_connection, *name_encode, *name_hold, *name_outbox, *name_size, *name_write;

/* Python's `object.method(argument)`, or without one. */
static int call(PyObject *object, PyObject *method, PyObject *argument)
{
    PyObject *result = argument ? PyObject_CallMethodOneArg(object, method, argument)
                                : PyObject_CallMethodNoArgs(object, method);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* How many bytes went: 0 on an error, which the outbox will meet again. */
static size_t send_bytes(Stream *self, const void *data, size_t size)
{
    ssize_t sent = send(self->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return 0;
    self->bytes_sent += sent;
    return sent;
}

/* The same for header and payload: small ones as one piece, large ones by one system call. */
static size_t send_frame(Stream *self, const unsigned char *header, size_t header_size,
                         const char *payload, size_t size)
{
    if (size < LARGE) {
        memcpy(buffer, header, header_size);
        memcpy(buffer + header_size, payload, size);
        return send_bytes(self, buffer, header_size + size);
    }
    struct iovec parts[] = {{(void *)header, header_size}, {(void *)payload, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t sent = sendmsg(self->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return 0;
    self->bytes_sent += sent;
    return sent;
}

/* What of a frame has not gone. */
static PyObject *make_rest(const unsigned char *header, size_t header_size, size_t sent,
                           PyObject *owner, const char *payload, size_t size)
{
    if (sent < header_size)
        return make_wire(header + sent, header_size - sent, owner, payload, size);
    PyObject *body = PyUnicode_Check(owner) ? view_text(owner, payload, size)
                                            : PyMemoryView_FromObject(owner);
    PyObject *rest = body ? PySequence_GetSlice(body, sent - header_size, size) : NULL;
    Py_XDECREF(body);
    return rest;
}

/* Bytes that wait in the outbox; -1 with an exception. */
static Py_ssize_t get_waiting(PyObject *outbox)
{
    PyObject *size = PyObject_GetAttr(outbox, name_size);
    Py_ssize_t waiting = size ? PyLong_AsSsize_t(size) : -1;
    Py_XDECREF(size);
    return waiting;
}

static void drop_pending(Stream *self)
{
    PyMem_Free(self->pending);
    self->pending = NULL;
    self->pending_size = self->pending_room = 0;
}

/* Send the pending replies behind what waits; the outbox gets what the socket does not take. */
static int flush_pending(Stream *self, PyObject *outbox)
{
    Py_ssize_t waiting = get_waiting(outbox);
    size_t size = self->pending_size, sent = 0;
    if (waiting == 0)
        sent = send_bytes(self, self->pending, size);
    PyObject *rest = NULL;
    if (waiting >= 0 && sent < size)
        rest = PyBytes_FromStringAndSize((char *)self->pending + sent, size - sent);
    drop_pending(self);
    int result = waiting == 0 && sent == size ? 0 : rest ? call(outbox, name_write, rest) : -1;
    Py_XDECREF(rest);
    return result;
}

PyDoc_STRVAR(take_pending_doc, "Give up the replies that were to share a write: bytes or `None`.");

static PyObject *Stream_take_pending(Stream *self, PyObject *ignored)
{
    (void)ignored;
    if (!self->pending)
        Py_RETURN_NONE;
    PyObject *taken = PyBytes_FromStringAndSize((char *)self->pending, self->pending_size);
    drop_pending(self);
    return taken;
}

/* One more reply, where it fits: 0. */
static int append_pending(Stream *self, const unsigned char *header, size_t header_size,
                          const char *payload, size_t size)
{
    size_t needed = self->pending_size + header_size + size;
    if (needed > self->pending_room) {
        size_t room = 2 * needed < 512 ? 512 : 2 * needed;
        unsigned char *grown = PyMem_Realloc(self->pending, room);
        if (!grown) {
            PyErr_NoMemory();
            return -1;
        }
        self->pending = grown, self->pending_room = room;
    }
    memcpy(self->pending + self->pending_size, header, header_size);
    memcpy(self->pending + self->pending_size + header_size, payload, size);
    self->pending_size = needed;
    return 0;
}

/* Send a frame behind what waits, the last of a turn at once: 0, or -1 with an exception. Its payload
 * lies in `owner`. */
static int send_behind(Stream *self, const unsigned char *header, size_t header_size,
                       PyObject *owner, const char *payload, size_t size, PyObject *connection,
                       PyObject *outbox, Py_ssize_t waiting, int is_last)
{
    if (!waiting && (self->pending || !is_last) && size < LARGE &&
        self->pending_size + size < MAX_PENDING)
        return append_pending(self, header, header_size, payload, size);
    if (self->pending) {
        if (flush_pending(self, outbox) < 0 || (waiting = get_waiting(outbox)) < 0)
            return -1;
        if (!self->is_open)
            return 0; /* that found the connection broken: the descriptor may be another's by now */
    }
    PyObject *wire, *object = connection, *method = name_hold;
    if (is_last && !waiting) {
        size_t sent = send_frame(self, header, header_size, payload, size);
        if (sent == header_size + size)
            return 0;
        wire = make_rest(header, header_size, sent, owner, payload, size);
        object = outbox, method = name_write;
    } else {
        wire = make_wire(header, header_size, owner, payload, size);
    }
    int result = wire ? call(object, method, wire) : -1;
    Py_XDECREF(wire);
    return result;
}

/* Send a `str` or `bytes`: 0. 1 when there is no room for it, -1 with an exception. */
static int answer(Stream *self, PyObject *reply, PyObject *connection, PyObject *outbox, int is_last)
{
    if (!self->is_open)
        return 0; /* nobody is there any more */
    Py_ssize_t size, waiting = get_waiting(outbox);
    if (waiting < 0 || waiting >= self->mark)
        return waiting < 0 ? -1 : 1;
    unsigned char header[MAX_HEADER];
    size_t header_size = 0;
    const char *payload = NULL;
    PyObject *frame = NULL, *owner = reply;
    if (self->window_bits) {
        owner = frame = PyObject_CallMethodOneArg(connection, name_encode, reply);
        if (!frame)
            return -1;
    }
    if (PyUnicode_Check(owner))
        payload = PyUnicode_AsUTF8AndSize(owner, &size);
    else
        PyBytes_AsStringAndSize(owner, (char **)&payload, &size);
    int result = -1;
    if (payload) {
        if (!frame)
            header_size = make_header(header, PyUnicode_Check(owner) ? TEXT : BINARY, size);
        self->replies++;
        self->has_sent = 1;
        result = send_behind(self, header, header_size, owner, payload, size, connection, outbox,
                             waiting, is_last);
    }
    Py_XDECREF(frame);
    return result;
}

/* -- callbacks --------------------------------------------------------------------------------- */

static PyObject *name_links, *name_forget, *name_flush_soon;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

PyDoc_STRVAR(serve_doc,
             "serve(due, context, listener, client, text_name, binary_name, connection, worker)\n\n"
             "Take messages off the end of `due`, run the listener's callback for each in `context`\n"
             "and send its reply. `None` when none is left or their turn is over; else a reply for\n"
             "Python to send: no `str` or `bytes`, or there is no room for it. Raises what the\n"
             "callback does, which may block; `callback` is its name.");

static PyObject *Stream_serve(Stream *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 8 || !PyList_CheckExact(args[0]) || !PyUnicode_CheckExact(args[4]) ||
        !PyUnicode_CheckExact(args[5])) {
        PyErr_SetString(PyExc_TypeError, "serve() takes a list, two names and five objects");
        return NULL;
    }
    PyObject *due = args[0], *context = args[1], *client = args[3], *connection = args[6];
    PyObject *worker = args[7], *left = NULL;
    PyObject *outbox = PyObject_GetAttr(connection, name_outbox);
    PyObject *locals = PyObject_GenericGetDict(worker, NULL);
    PyObject *links = PyObject_GetAttr(worker, name_links);
    if (!outbox || !locals || !links || PyContext_Enter(context) < 0)
        goto end;
    Py_ssize_t rest = PyList_GET_SIZE(due);
    double ends = rest > 1 ? now() + self->turn : 0;
    int result = 0, is_pending = 0;
    while (result == 0 && rest > 0) {
        PyObject *message = PyList_GET_ITEM(due, rest - 1), *reply = NULL;
        Py_INCREF(message);
        PyObject *name = PyBytes_CheckExact(message) ? args[5] : args[4];
        result = PyList_SetSlice(due, rest - 1, rest, NULL);
        if (result == 0 && PyUnicode_GET_LENGTH(name)) {
            Py_INCREF(name);
            Py_XSETREF(self->callback, name);
            PyObject *call_args[] = {args[2], client, message};
            reply = PyObject_VectorcallMethod(name, call_args, 3, NULL);
            result = reply ? 0 : -1;
            /* Nothing of a callback's greenlet-locals is there for the next one. */
            if (reply && (PyDict_GET_SIZE(locals) || PyList_GET_SIZE(links)))
                result = call(worker, name_forget, NULL);
        }
        rest = PyList_GET_SIZE(due); /* closing drops what is left */
        if (result == 0 && reply && reply != Py_None) {
            int is_plain = PyUnicode_CheckExact(reply) || PyBytes_CheckExact(reply);
            result = is_plain ? answer(self, reply, connection, outbox, rest == 0) : 1;
            if (result > 0)
                left = Py_NewRef(reply);
            /* The next callback may block. */
            if (result == 0 && rest && self->pending && !is_pending)
                is_pending = 1, result = call(connection, name_flush_soon, NULL);
        }
        Py_XDECREF(reply);
        Py_DECREF(message);
        if (rest && now() > ends)
            break;
    }
    if (PyContext_Exit(context) < 0)
        result = -1;
    if (self->pending) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (flush_pending(self, outbox) < 0) {
            result = -1;
            Py_XDECREF(type);
            Py_XDECREF(value);
            Py_XDECREF(traceback);
        } else {
            PyErr_Restore(type, value, traceback);
        }
    }
    if (result < 0)
        Py_CLEAR(left);
    else if (!left)
        left = Py_NewRef(Py_None);
end:
    Py_XDECREF(outbox);
    Py_XDECREF(locals);
    Py_XDECREF(links);
    return left;
}

/* -- broadcasts -------------------------------------------------------------------------------- */

static PyTypeObject stream_type;
static PyObject *name_stream, *name_wire;

enum { FORMS = 16 }; /* a window has up to 15 bits, RFC 7692 section 7.1.2.1 */

/* Send the frame that `self` takes to a connection that has nothing else to send: 1. 0 when it is for
 * Python, -1 with an exception. `wires` keeps the forms that have been made. */
static int deliver_by(Stream *self, PyObject *connection, PyObject *prepared, PyObject **wires)
{
    if (!self->is_open || self->pending)
        return 0;
    PyObject *outbox = PyObject_GetAttr(connection, name_outbox);
    Py_ssize_t waiting = outbox ? get_waiting(outbox) : -1;
    int result = waiting < 0 ? -1 : 0;
    PyObject **wire = wires + self->window_bits;
    if (waiting == 0 && !*wire) {
        PyObject *bits = PyLong_FromLong(self->window_bits);
        *wire = bits ? PyObject_CallMethodOneArg(prepared, name_wire, bits) : NULL;
        Py_XDECREF(bits);
    }
    if (waiting == 0 && (!*wire || !PyBytes_CheckExact(*wire))) {
        if (*wire)
            PyErr_SetString(PyExc_TypeError, "wire() must give bytes");
        result = -1;
    } else if (waiting == 0) {
        const char *data = PyBytes_AS_STRING(*wire);
        size_t size = PyBytes_GET_SIZE(*wire), sent = send_bytes(self, data, size);
        self->has_sent = 1;
        result = 1;
        if (sent < size) {
            PyObject *rest = make_rest(NULL, 0, sent, *wire, data, size);
            if (!rest || call(outbox, name_write, rest) < 0)
                result = -1;
            Py_XDECREF(rest);
        }
    }
    Py_XDECREF(outbox);
    return result;
}

static int deliver_to(PyObject *member, PyObject *prepared, PyObject **wires)
{
    PyObject *connection = PyObject_GetAttr(member, name_connection);
    PyObject *stream = connection ? PyObject_GetAttr(connection, name_stream) : NULL;
    int result = !stream                              ? -1
                 : !Py_IS_TYPE(stream, &stream_type) ? 0
                                                      : deliver_by((Stream *)stream, connection,
                                                                   prepared, wires);
    Py_XDECREF(connection);
    Py_XDECREF(stream);
    return result;
}

PyDoc_STRVAR(deliver_doc,
             "deliver(members, prepared): send a `PreparedMessage` to each member of a list whose\n"
             "connection has a stream and nothing else to send. The list of the others.");

static PyObject *deliver(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "deliver() takes a list and a message");
        return NULL;
    }
    PyObject *others = PyList_New(0), *wires[FORMS] = {NULL};
    for (Py_ssize_t i = 0; others && i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *member = Py_NewRef(PyList_GET_ITEM(args[0], i));
        int result = deliver_to(member, args[1], wires);
        if (result < 0 || (result == 0 && PyList_Append(others, member) < 0))
            Py_CLEAR(others);
        Py_DECREF(member);
    }
    for (int bits = 0; bits < FORMS; bits++)
        Py_XDECREF(wires[bits]);
    return others;
}

/* -- the module -------------------------------------------------------------------------------- */

static int Stream_init(Stream *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "max_size", "mark", "turn", "window_bits", NULL};
    self->is_open = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "inndi", names, &self->fd, &self->max_size,
                                     &self->mark, &self->turn, &self->window_bits))
        return -1;
    if (self->window_bits < 0 || self->window_bits >= FORMS) {
        PyErr_SetString(PyExc_ValueError, "window_bits is 0 to 15");
        return -1;
    }
    return 0;
}

static void Stream_dealloc(Stream *self)
{
    PyMem_Free(self->kept);
    Py_XDECREF(self->message);
    Py_XDECREF(self->callback);
    PyMem_Free(self->pending);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Stream_is_idle(Stream *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(!self->kept && !self->message);
}

static PyMethodDef stream_methods[] = {
    {"read", (PyCFunction)Stream_read, METH_NOARGS, read_doc},
    {"take_pending", (PyCFunction)Stream_take_pending, METH_NOARGS, take_pending_doc},
    {"serve", (PyCFunction)(void (*)(void))Stream_serve, METH_FASTCALL, serve_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stream_members[] = {
    {"bytes_received", T_ULONGLONG, offsetof(Stream, bytes_received), READONLY, "Bytes read."},
    {"bytes_sent", T_ULONGLONG, offsetof(Stream, bytes_sent), READONLY, "Bytes sent."},
    {"replies", T_ULONGLONG, offsetof(Stream, replies), 0, "Messages sent or queued; to be reset."},
    {"has_sent", T_BOOL, offsetof(Stream, has_sent), 0, "True once a message has; to be reset."},
    {"is_open", T_BOOL, offsetof(Stream, is_open), 0, "False once nothing may be sent any more."},
    {"callback", T_OBJECT, offsetof(Stream, callback), READONLY, "The last one's name."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef stream_getset[] = {
    {"is_idle", (getter)Stream_is_idle, NULL, "True between two frames.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject stream_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Stream",
    .tp_doc = "The server's end of one connection: a non-blocking TCP socket's descriptor, which\n"
              "stays its owner's; the largest message that is taken, and the mark of the outbox,\n"
              "in bytes; how long a turn is, in seconds; the window of the agreed compression.",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Stream_init,
    .tp_dealloc = (destructor)Stream_dealloc,
    .tp_methods = stream_methods,
    .tp_members = stream_members,
    .tp_getset = stream_getset,
};

static PyMethodDef functions[] = {
    {"deliver", (PyCFunction)(void (*)(void))deliver, METH_FASTCALL, deliver_doc},
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, pack_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_speedups",
    .m_doc = "Reading and writing everyday messages, in C.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__speedups(void)
{
    struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&name_connection, "connection"}, {&name_encode, "encode"},
        {&name_flush_soon, "flush_soon"}, {&name_forget, "forget_locals"},
        {&name_hold, "hold"},             {&name_links, "links"},
        {&name_outbox, "outbox"},         {&name_size, "size"},
        {&name_stream, "stream"},         {&name_wire, "wire"},
        {&name_write, "write"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!*names[i].name && !(*names[i].name = PyUnicode_InternFromString(names[i].text)))
            return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module || PyType_Ready(&utf8_type) < 0 || PyType_Ready(&stream_type) < 0)
        return NULL;
    Py_INCREF(&stream_type);
    if (PyModule_AddObject(module, "Stream", (PyObject *)&stream_type) < 0) {
        Py_DECREF(&stream_type);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
