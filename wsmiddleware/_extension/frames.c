/* From messages to frames. */
#include "stream.h"

#include <string.h>

size_t make_header(unsigned char *header, int first, uint64_t size)
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

/* The UTF-8 of a `str` as a buffer: the bytes that the string keeps, not a copy. */
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

PyTypeObject utf8_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Utf8",
    .tp_basicsize = sizeof(Utf8),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)Utf8_dealloc,
    .tp_as_buffer = &utf8_buffer,
};

PyObject *view_text(PyObject *text, const char *data, Py_ssize_t size)
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

/* The wire form of a frame: `bytes`; from LARGE on a tuple of its header and a view of its payload, which
 * is not copied. Without a header it is `owner` itself. */
PyObject *make_wire(const unsigned char *header, size_t header_size, PyObject *owner,
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

PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t count)
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
    PyObject *copy = PyBytes_FromObject(data); /* its owner may change it before it was sent */
    if (!copy)
        return NULL;
    PyObject *wire = pack_payload(copy, PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy));
    Py_DECREF(copy);
    return wire;
}
