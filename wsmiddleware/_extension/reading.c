/* From the socket to messages. */
#include "stream.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

_Thread_local unsigned char buffer[BUFFER_SIZE + LARGE];

/* -- frames ------------------------------------------------------------------------------------ */

typedef enum { WHOLE, CUT, OTHER } Look;

/* Tell what starts at `data`: a whole frame that is read here, the beginning of one, or something for
 * the engine. */
static Look look(const Stream *self, const unsigned char *data, size_t size, size_t *header,
                 size_t *length)
{
    int first = self->window_bits ? data[0] & ~COMPRESSED : data[0];
    *header = MAX_HEADER;
    *length = 0;
    if (first != TEXT && first != BINARY)
        return OTHER;
    if (size < 2)
        return CUT;
    size_t field = data[1] & 127;
    if (!(data[1] & 128))
        return OTHER;
    *header = field < 126 ? 6 : field == 126 ? 8 : 14;
    if (size < *header - 4)
        return CUT;
    uint64_t wide = field < 126 ? field : 0;
    for (size_t i = 2; i < *header - 4; i++)
        wide = wide << 8 | data[i];
    if (field >= 126 && wide < (field == 126 ? 126u : 65536u))
        return OTHER; /* not the shortest form */
    if (wide > (uint64_t)self->max_size || (data[0] & COMPRESSED && wide > MAX_DEFLATED))
        return OTHER;
    *length = wide;
    return size < *header || size - *header < *length ? CUT : WHOLE;
}

/* The message of a whole compressed frame. Its size is subtracted from `left`, the limit for this read.
 * Runs Python code, and zlib lets other threads run. */
static PyObject *inflate(const Stream *self, const unsigned char *frame, size_t header, size_t length,
                         Py_ssize_t *left)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, length), *message = NULL;
    PyObject *limit = data ? PyLong_FromSsize_t(Py_MIN(*left, self->max_size)) : NULL;
    if (limit) {
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(data);
        unmask(to, frame + header, length, frame + header - 4, 0);
        message = PyObject_CallFunctionObjArgs(decompress, data, limit, NULL);
    }
    if (message)
        *left -= PyBytes_GET_SIZE(message);
    if (message && frame[0] == (TEXT | COMPRESSED))
        Py_SETREF(message, PyUnicode_FromEncodedObject(message, "utf-8", NULL));
    Py_XDECREF(limit);
    Py_XDECREF(data);
    return message;
}

/* The message of a whole frame; NULL with UnicodeDecodeError. May unmask the payload in place. */
static PyObject *make_message(unsigned char *frame, size_t header, size_t length)
{
    unsigned char *payload = frame + header, *key = payload - 4;
    if (frame[0] == TEXT) {
        PyObject *text = PyUnicode_New(length, 127);
        /* ASCII is unmasked right into the `str`, without a copy: saves 10 % of 64 KiB, batch 1. */
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

/* Memory grows with the bytes that came, not with the length that a header promises: to sixteen times
 * as many, as pages that are not touched cost nothing. One copy to a larger block less saves 10 % of
 * 1 MiB, batch 1. */
static int grow(Stream *self)
{
    size_t size = self->done > self->length / 16 ? self->length : 16 * self->done;
    if (size < BUFFER_SIZE)
        size = BUFFER_SIZE;
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

/* The bytes of the incomplete frame, masked again as they came: for the engine. */
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

static int start_large(Stream *self, const unsigned char *frame, size_t size, size_t header,
                       size_t length)
{
    memcpy(self->header, frame, header);
    self->header_size = header;
    self->length = length;
    self->done = size - header;
    if (grow(self) < 0)
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

static Found nothing(ssize_t got)
{
    if (got == 0)
        return END;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return NOTHING;
    PyErr_SetFromErrno(PyExc_OSError);
    return FAILED;
}

/* Bytes for the engine, or an error. */
static Found leave(PyObject *rest, PyObject **to)
{
    *to = rest;
    return rest ? SOMETHING : FAILED;
}

static Found read_large(Stream *self, PyObject *messages, PyObject **rest)
{
    if (self->done == capacity(self) && grow(self) < 0)
        return FAILED;
    unsigned char *to = room(self) + self->done;
    ssize_t got = receive(self, to, capacity(self) - self->done);
    if (got <= 0)
        return nothing(got);
    unsigned char high =
        unmask(to, to, got, self->header + self->header_size - 4, self->done);
    self->done += got;
    if (high && self->header[0] == TEXT)
        return leave(give_back(self), rest);
    if (self->done < self->length)
        return SOMETHING;
    int result = PyList_Append(messages, self->message);
    Py_CLEAR(self->message);
    return result < 0 ? FAILED : SOMETHING;
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

/* True where the current exception says that the frame is invalid. Clears it: the engine gets the frame
 * and finds out what is wrong. */
static int is_for_engine(unsigned char *frame, size_t header, size_t length)
{
    int is_compressed = frame[0] & COMPRESSED;
    if (!PyErr_ExceptionMatches(is_compressed ? PyExc_Exception : PyExc_UnicodeDecodeError))
        return 0;
    PyErr_Clear();
    if (!is_compressed)
        unmask(frame + header, frame + header, length, frame + header - 4, 0);
    return 1;
}

static Found parse(Stream *self, unsigned char *data, size_t size, PyObject *messages,
                   PyObject **rest)
{
    size_t pos = 0, header, length;
    Py_ssize_t left = MAX_INFLATED;
    double ends = 0;
    self->is_slice_over = 0;
    for (int frames = 0; pos < size; frames++) {
        Look found = look(self, data + pos, size - pos, &header, &length);
        int is_compressed = data[pos] & COMPRESSED;
        if (is_compressed && !ends)
            ends = now() + MAX_INFLATING / 1e6;
        else if (is_compressed && frames >= MIN_INFLATING && now() > ends)
            frames = MAX_FRAMES;
        if (found == WHOLE && frames < MAX_FRAMES) {
            if (is_compressed && data == buffer) {
                /* Inflating lets other threads run, and the buffer is shared. */
                PyObject *copy = PyBytes_FromStringAndSize((char *)data + pos, size - pos);
                unsigned char *copied = copy ? (unsigned char *)PyBytes_AS_STRING(copy) : NULL;
                Found result = copy ? parse(self, copied, size - pos, messages, rest) : FAILED;
                Py_XDECREF(copy);
                return result;
            }
            PyObject *message = is_compressed ? inflate(self, data + pos, header, length, &left)
                                              : make_message(data + pos, header, length);
            int result = !message ? -1 : self->is_open ? PyList_Append(messages, message) : 0;
            Py_XDECREF(message);
            if (result == 0) {
                pos += header + length;
                continue;
            }
            if (!is_for_engine(data + pos, header, length))
                return FAILED;
        } else if (found == WHOLE) {
            self->is_slice_over = 1;
        } else if (found == CUT && (size - pos < header ||
                                    (data[pos] != TEXT && header + length <= LARGE))) {
            /* Not text: start_large checks each byte of that as it comes. */
            return keep(self, data + pos, size - pos) < 0 ? FAILED : SOMETHING;
        } else if (found == CUT) {
            int is_wide = start_large(self, data + pos, size - pos, header, length);
            if (is_wide < 0)
                return FAILED;
            return is_wide && data[pos] == TEXT ? leave(give_back(self), rest) : SOMETHING;
        }
        return leave(PyBytes_FromStringAndSize((char *)data + pos, size - pos), rest);
    }
    return SOMETHING;
}

/* Receive once, without waiting. Appends to `messages`; sets `rest` to the bytes behind them that are
 * for the engine, if there are any. */
Found read_some(Stream *self, PyObject *messages, PyObject **rest)
{
    if (self->message)
        return read_large(self, messages, rest);
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
    return parse(self, buffer, kept + got, messages, rest);
}
