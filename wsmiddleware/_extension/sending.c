/* From frames to the socket: replies, and broadcasts. */
#include "stream.h"

#include <string.h>
#include <sys/socket.h>

/* Python's `object.method(argument)`, or without one. */
int call(PyObject *object, PyObject *method, PyObject *argument)
{
    PyObject *result = argument ? PyObject_CallMethodOneArg(object, method, argument)
                                : PyObject_CallMethodNoArgs(object, method);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

#if PY_VERSION_HEX < 0x030C0000
PyObject *PyErr_GetRaisedException(void)
{
    PyObject *type, *exception, *traceback;
    if (!PyErr_Occurred())
        return NULL;
    PyErr_Fetch(&type, &exception, &traceback);
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback)
        PyException_SetTraceback(exception, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return exception;
}

void PyErr_SetRaisedException(PyObject *exception)
{
    PyErr_Restore(Py_NewRef(Py_TYPE(exception)), exception, PyException_GetTraceback(exception));
}
#endif

/* Call `method` (`lost` or `broken`) with the exception that is set, or with None. Raises Ctrl-C only,
 * and what `method` raises. */
int tell(Stream *self, PyObject *method)
{
    PyObject *exception = PyErr_GetRaisedException();
    int result = call((PyObject *)self, method, exception ? exception : Py_None);
    /* Ctrl-C belongs to the main greenlet. */
    if (result == 0 && exception && !PyErr_GivenExceptionMatches(exception, PyExc_Exception)) {
        PyErr_SetRaisedException(exception);
        return -1;
    }
    Py_XDECREF(exception);
    return result;
}

/* Send and give the number of bytes sent: 0 on an error, which the outbox will meet again. */
static size_t send_bytes(Stream *self, const void *data, size_t size)
{
    ssize_t sent = send(self->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return 0;
    self->bytes_written += sent;
    return sent;
}

/* The same for header and payload: small ones are copied together, large ones go by `sendmsg`. */
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
    self->bytes_written += sent;
    return sent;
}

/* The part of a frame that was not sent. May run other Python code, and that may send. */
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

/* Give the outbox `rest`, the part of a frame that was not sent; steals the reference. Where a part of
 * the frame was sent, the caller has called `set_busy` before it made `rest`, so that no other frame
 * comes in between. */
static int write_rest(PyObject *outbox, PyObject *rest)
{
    int result = rest ? call(outbox, names.write, rest) : -1;
    Py_XDECREF(rest);
    PyObject *exception = PyErr_GetRaisedException();
    if (set_slot(&slots.is_busy, outbox, Py_False) < 0)
        result = -1;
    if (exception)
        PyErr_SetRaisedException(exception);
    return result;
}

static int set_busy(PyObject *outbox, size_t sent)
{
    return sent ? set_slot(&slots.is_busy, outbox, Py_True) : 0;
}

/* Bytes that wait in the outbox; -1 with an exception. */
static Py_ssize_t get_waiting(PyObject *outbox)
{
    PyObject *size = get_slot(&slots.size, outbox);
    return size ? PyLong_AsSsize_t(size) : -1;
}

/* A block for pending replies, up to 128 KiB, kept for the next stream that needs one: saves 10 % of
 * 1 KiB, batch 16. */
static unsigned char *spare;
static size_t spare_room;

static void drop_pending(Stream *self)
{
    if (self->pending_room > spare_room) {
        PyMem_Free(spare);
        spare = self->pending, spare_room = self->pending_room;
    } else {
        PyMem_Free(self->pending);
    }
    self->pending = NULL;
    self->pending_size = self->pending_room = 0;
}

/* Send the pending replies after what waits in the outbox, which gets what the socket does not take. */
int flush_pending(Stream *self)
{
    Py_ssize_t waiting = get_waiting(self->outbox);
    size_t size = self->pending_size, sent = 0;
    if (waiting == 0)
        sent = send_bytes(self, self->pending, size);
    int result = waiting < 0 || (sent < size && set_busy(self->outbox, sent) < 0) ? -1 : 0;
    PyObject *rest = NULL;
    if (result == 0 && sent < size)
        rest = PyBytes_FromStringAndSize((char *)self->pending + sent, size - sent);
    drop_pending(self);
    return result == 0 && sent < size ? write_rest(self->outbox, rest) : result;
}

/* Send what waits, if the socket takes it. */
int flush_outbox(Stream *self)
{
    Py_ssize_t waiting = get_waiting(self->outbox);
    return waiting > 0 ? call(self->outbox, names.flush, NULL) : waiting;
}

PyObject *Stream_enqueue_pending(Stream *self, PyObject *ignored)
{
    (void)ignored;
    if (!self->pending)
        Py_RETURN_NONE;
    PyObject *taken = PyBytes_FromStringAndSize((char *)self->pending, self->pending_size);
    drop_pending(self);
    int result = taken ? call(self->outbox, names.enqueue, taken) : -1;
    Py_XDECREF(taken);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* Append a frame to the pending replies: 0, or -1 without memory. */
static int append_pending(Stream *self, const unsigned char *header, size_t header_size,
                          const char *payload, size_t size)
{
    size_t needed = self->pending_size + header_size + size;
    if (!self->pending) {
        self->pending = spare, self->pending_room = spare_room;
        spare = NULL, spare_room = 0;
    }
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

/* Send a frame after what waits; the last reply (`is_last`) goes at once, others may share its write.
 * `owner` is the object that has the payload. Gives 0, or -1 with an exception. */
static int send_behind(Stream *self, const unsigned char *header, size_t header_size,
                       PyObject *owner, const char *payload, size_t size, Py_ssize_t waiting,
                       int is_last)
{
    if (!waiting && (self->pending || !is_last) && size < LARGE &&
        self->pending_size + size < MAX_PENDING)
        return append_pending(self, header, header_size, payload, size);
    if (self->pending) {
        if (flush_pending(self) < 0 || (waiting = get_waiting(self->outbox)) < 0)
            return -1;
        if (!self->is_open) /* the flush has ended it: the descriptor may be another's */
            return call((PyObject *)self, names.reply_lost, NULL);
    }
    if (is_last && !waiting) {
        size_t sent = send_frame(self, header, header_size, payload, size);
        if (sent == header_size + size)
            return 0;
        if (set_busy(self->outbox, sent) < 0)
            return -1;
        return write_rest(self->outbox,
                          make_rest(header, header_size, sent, owner, payload, size));
    }
    PyObject *wire = make_wire(header, header_size, owner, payload, size);
    int result = wire ? call((PyObject *)self, names.enqueue, wire) : -1;
    Py_XDECREF(wire);
    return result;
}

/* The bytes of a `str` (as UTF-8) or `bytes`; `owner` keeps them. NULL with an exception. */
static const char *get_payload(PyObject *owner, Py_ssize_t *size)
{
    char *payload = NULL;
    if (PyUnicode_Check(owner))
        return PyUnicode_AsUTF8AndSize(owner, size);
    PyBytes_AsStringAndSize(owner, &payload, size);
    return payload;
}

/* Send `owner` as the payload of a frame, or as a frame (`is_frame`). Results as those of `answer`. */
static int send_payload(Stream *self, PyObject *owner, int is_frame, int is_last)
{
    Py_ssize_t size, waiting;
    const char *payload = get_payload(owner, &size);
    if (!payload || (waiting = get_waiting(self->outbox)) < 0)
        return -1;
    /* Not before: a finalizer that the collector has run meanwhile may have closed. */
    if (!self->is_open)
        return call((PyObject *)self, names.reply_lost, NULL);
    if (waiting >= self->mark)
        return 1;
    unsigned char header[MAX_HEADER];
    int first = PyUnicode_Check(owner) ? TEXT : BINARY;
    size_t header_size = is_frame ? 0 : make_header(header, first, size);
    self->metrics->messages_sent++;
    self->last_message = self->reactor->now;
    return send_behind(self, header, header_size, owner, payload, size, waiting, is_last);
}

/* Send a `str` or `bytes`. Gives 0; 1 when Python must send it (the outbox is past its mark, or C may not
 * write the socket); -1 with an exception. */
int answer(Stream *self, PyObject *reply, int is_last)
{
    if (!self->is_open) /* closed: nobody gets it */
        return call((PyObject *)self, names.reply_lost, NULL);
    if (self->fd < 0)
        return 1;
    Py_ssize_t size;
    if (self->window_bits && !get_payload(reply, &size))
        return -1;
    if (!self->window_bits || size < min_compress_size)
        return send_payload(self, reply, 0, is_last);
    PyObject *frame = PyObject_CallMethodOneArg((PyObject *)self, names.encode, reply);
    int result = frame ? send_payload(self, frame, 1, is_last) : -1;
    Py_XDECREF(frame);
    return result;
}

/* -- broadcasts -------------------------------------------------------------------------------- */

/* The wire form of a message for `self`, borrowed. `wires` keeps the forms, by window bits. */
static PyObject *get_form(const Stream *self, PyObject *prepared, PyObject **wires)
{
    PyObject **wire = wires + self->window_bits;
    if (!*wire) {
        PyObject *bits = PyLong_FromLong(self->window_bits);
        *wire = bits ? PyObject_CallMethodOneArg(prepared, names.wire, bits) : NULL;
        if (bits && !*wire && PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear(); /* once more: all clients of this form need it */
            *wire = PyObject_CallMethodOneArg(prepared, names.wire, bits);
        }
        Py_XDECREF(bits);
    }
    if (*wire && !PyBytes_CheckExact(*wire)) {
        PyErr_SetString(PyExc_TypeError, "wire() must give bytes");
        return NULL;
    }
    return *wire;
}

/* Send `wire` to one connection: right here where nothing waits, else by its `try_send`. */
static int deliver_by(Stream *self, PyObject *wire)
{
    if (!self->is_open)
        return 0;
    PyObject *is_busy = get_slot(&slots.is_busy, self->outbox);
    if (!is_busy)
        return -1;
    Py_ssize_t waiting = 1;
    if (self->fd >= 0 && !self->pending && is_busy == Py_False)
        waiting = get_waiting(self->outbox);
    if (waiting != 0)
        return waiting < 0 ? -1 : call((PyObject *)self, names.try_send, wire);
    const char *data = PyBytes_AS_STRING(wire);
    size_t size = PyBytes_GET_SIZE(wire), sent = send_bytes(self, data, size);
    self->last_message = self->reactor->now;
    self->metrics->messages_sent++;
    if (sent == size)
        return 0;
    if (set_busy(self->outbox, sent) < 0)
        return -1;
    return write_rest(self->outbox, make_rest(NULL, 0, sent, wire, data, size));
}

static int deliver_to(PyObject *member, PyObject *prepared, PyObject **wires)
{
    PyObject *connection = get_slot(&slots.connection, member);
    if (!connection || !PyObject_TypeCheck(connection, &stream_type)) {
        if (connection)
            PyErr_SetString(PyExc_TypeError, "a member's connection must be a Stream");
        return -1;
    }
    Stream *self = (Stream *)Py_NewRef(connection);
    /* First, because it may run Python code that changes what is read below. */
    PyObject *wire = get_form(self, prepared, wires);
    int result = wire ? deliver_by(self, wire) : -1;
    if (wire && result < 0)
        result = tell(self, names.broken); /* no memory, for one: the others get theirs */
    Py_DECREF(self);
    return result;
}

/* Ask the processor to load this memory into its caches. */
static void fetch(const void *from, size_t size)
{
    for (size_t i = 0; i < size; i += 64)
        __builtin_prefetch((const char *)from + i, 1);
}

static Stream *peek_stream(PyObject *members, Py_ssize_t i)
{
    if (i >= PyList_GET_SIZE(members))
        return NULL;
    return (Stream *)peek_slot(&slots.connection, PyList_GET_ITEM(members, i));
}

/* Prefetch the next two members while the system sends to this one, as thousands of them fit no cache:
 * saves 7 % of a broadcast to 5,000. */
static void fetch_ahead(PyObject *members, Py_ssize_t i)
{
    Stream *stream = peek_stream(members, i + 2);
    if (stream)
        fetch(stream, 128);
    stream = peek_stream(members, i + 1);
    if (stream && PyObject_TypeCheck(stream, &stream_type) && stream->outbox)
        fetch(stream->outbox, 128);
}

PyObject *deliver(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "deliver() takes a list and a message");
        return NULL;
    }
    PyObject *wires[FORMS] = {NULL};
    int result = 0;
    for (Py_ssize_t i = 0; result == 0 && i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *member = Py_NewRef(PyList_GET_ITEM(args[0], i));
        fetch_ahead(args[0], i);
        result = deliver_to(member, args[1], wires);
        Py_DECREF(member);
    }
    for (int bits = 0; bits < FORMS; bits++)
        Py_XDECREF(wires[bits]);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}
