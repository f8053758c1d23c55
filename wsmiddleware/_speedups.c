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
    MAX_FRAMES = 256,      /* of one read: then others get their turn */
    MAX_HEADER = 14,
    TEXT = 0x81, /* FIN and the opcode, RFC 6455 section 5.2 */
    BINARY = 0x82,
};

static unsigned char buffer[BUFFER_SIZE + LARGE];

typedef struct {
    PyObject_HEAD
    int fd;
    char is_open; /* the connection's state, as `serve` must know it */
    Py_ssize_t max_size, mark;
    double turn;
    unsigned long long bytes_received, bytes_sent, replies;
    PyObject *callback; /* the name of the one that `serve` has called last */
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
        if (unmask(payload, payload, length, key, 0))
            return PyUnicode_DecodeUTF8((char *)payload, length, NULL);
        PyObject *text = PyUnicode_New(length, 127);
        if (text && length)
            memcpy(PyUnicode_1BYTE_DATA(text), payload, length);
        return text;
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

/* A frame in one piece; from LARGE on its header, and its payload without a copy. */
static PyObject *make_wire(const unsigned char *header, size_t header_size, PyObject *owner,
                           const char *payload, Py_ssize_t size)
{
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

/* -- callbacks --------------------------------------------------------------------------------- */

static PyObject *name_size, *name_write, *name_hold, *name_outbox, *name_links, *name_forget;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Header and payload in one system call; how much of them went. An error is for the outbox, which
 * meets it again. */
static size_t send_frame(Stream *self, const unsigned char *header, size_t header_size,
                         const char *payload, size_t size)
{
    ssize_t sent;
    if (size < LARGE) {
        memcpy(buffer, header, header_size);
        memcpy(buffer + header_size, payload, size);
        sent = send(self->fd, buffer, header_size + size, MSG_DONTWAIT | MSG_NOSIGNAL);
    } else {
        struct iovec parts[] = {{(void *)header, header_size}, {(void *)payload, size}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        sent = sendmsg(self->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
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

static int call(PyObject *object, PyObject *method, PyObject *argument)
{
    PyObject *result = argument ? PyObject_CallMethodOneArg(object, method, argument)
                                : PyObject_CallMethodNoArgs(object, method);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Send a `str` or `bytes` behind what waits, the last of a turn at once: 0. 1 when there is no room
 * for it, -1 with an exception. */
static int answer(Stream *self, PyObject *reply, PyObject *connection, int is_last)
{
    if (!self->is_open)
        return 0; /* nobody is there any more */
    unsigned char header[MAX_HEADER];
    Py_ssize_t size, waiting = -1;
    PyObject *outbox = PyObject_GetAttr(connection, name_outbox), *number = NULL, *wire = NULL;
    const char *payload = NULL;
    int result = -1;
    if (outbox && (number = PyObject_GetAttr(outbox, name_size)))
        waiting = PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    if (waiting < 0)
        goto end;
    result = 1;
    if (waiting >= self->mark)
        goto end;
    result = -1;
    if (PyUnicode_Check(reply))
        payload = PyUnicode_AsUTF8AndSize(reply, &size);
    else
        PyBytes_AsStringAndSize(reply, (char **)&payload, &size);
    if (!payload)
        goto end;
    self->replies++;
    size_t header_size = make_header(header, PyUnicode_Check(reply) ? TEXT : BINARY, size);
    if (is_last && !waiting) {
        size_t sent = send_frame(self, header, header_size, payload, size);
        result = 0;
        if (sent == header_size + size)
            goto end;
        wire = make_rest(header, header_size, sent, reply, payload, size);
        result = wire ? call(outbox, name_write, wire) : -1;
    } else {
        wire = make_wire(header, header_size, reply, payload, size);
        result = wire ? call(connection, name_hold, wire) : -1;
    }
end:
    Py_XDECREF(wire);
    Py_XDECREF(outbox);
    return result;
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
    PyObject *locals = PyObject_GenericGetDict(worker, NULL);
    PyObject *links = PyObject_GetAttr(worker, name_links);
    if (!locals || !links || PyContext_Enter(context) < 0)
        goto end;
    Py_ssize_t rest = PyList_GET_SIZE(due);
    double ends = rest > 1 ? now() + self->turn : 0;
    int result = 0;
    while (result == 0 && rest > 0) {
        PyObject *message = PyList_GET_ITEM(due, rest - 1);
        Py_INCREF(message);
        PyObject *name = PyBytes_CheckExact(message) ? args[5] : args[4];
        result = PyList_SetSlice(due, rest - 1, rest, NULL);
        if (result == 0 && PyUnicode_GET_LENGTH(name)) {
            Py_INCREF(name);
            Py_XSETREF(self->callback, name);
            PyObject *call_args[] = {args[2], client, message};
            PyObject *reply = PyObject_VectorcallMethod(name, call_args, 3, NULL);
            result = reply ? 0 : -1;
            /* Nothing of a callback's greenlet-locals is there for the next one. */
            if (reply && (PyDict_GET_SIZE(locals) || PyList_GET_SIZE(links)))
                result = call(worker, name_forget, NULL);
            rest = PyList_GET_SIZE(due); /* closing drops what is left */
            if (result == 0 && reply != Py_None) {
                int is_plain = PyUnicode_CheckExact(reply) || PyBytes_CheckExact(reply);
                result = is_plain ? answer(self, reply, connection, rest == 0) : 1;
                if (result > 0)
                    left = Py_NewRef(reply);
            }
            Py_XDECREF(reply);
        } else {
            rest = PyList_GET_SIZE(due);
        }
        Py_DECREF(message);
        if (rest && now() > ends)
            break;
    }
    if (PyContext_Exit(context) < 0)
        result = -1;
    if (result < 0)
        Py_CLEAR(left);
    else if (!left)
        left = Py_NewRef(Py_None);
end:
    Py_XDECREF(locals);
    Py_XDECREF(links);
    return left;
}

/* -- the module -------------------------------------------------------------------------------- */

static int Stream_init(Stream *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "max_size", "mark", "turn", NULL};
    self->is_open = 1;
    return PyArg_ParseTupleAndKeywords(args, kwargs, "innd", names, &self->fd, &self->max_size,
                                       &self->mark, &self->turn)
               ? 0
               : -1;
}

static void Stream_dealloc(Stream *self)
{
    PyMem_Free(self->kept);
    Py_XDECREF(self->message);
    Py_XDECREF(self->callback);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *Stream_is_idle(Stream *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(!self->kept && !self->message);
}

static PyMethodDef stream_methods[] = {
    {"read", (PyCFunction)Stream_read, METH_NOARGS, read_doc},
    {"serve", (PyCFunction)(void (*)(void))Stream_serve, METH_FASTCALL, serve_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stream_members[] = {
    {"bytes_received", T_ULONGLONG, offsetof(Stream, bytes_received), READONLY, "Bytes read."},
    {"bytes_sent", T_ULONGLONG, offsetof(Stream, bytes_sent), READONLY, "Bytes sent."},
    {"replies", T_ULONGLONG, offsetof(Stream, replies), 0, "Messages sent or queued; to be reset."},
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
              "in bytes; how long a turn is, in seconds.",
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
    } names[] = {{&name_size, "size"},     {&name_write, "write"},  {&name_hold, "hold"},
                 {&name_outbox, "outbox"}, {&name_links, "links"}, {&name_forget, "forget_locals"}};
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
