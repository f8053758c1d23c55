/* The module and its types. */
#include "stream.h"

#include <structmember.h>

Names names;
PyObject *decompress;
Py_ssize_t min_compress_size;

/* -- counts ------------------------------------------------------------------------------------ */

static PyMemberDef counts_members[] = {
    {"messages_received", T_ULONGLONG, offsetof(Counts, messages_received), 0, "Messages read."},
    {"messages_sent", T_ULONGLONG, offsetof(Counts, messages_sent), 0, "Messages sent or queued."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject counts_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Counts",
    .tp_doc = "Messages counted.",
    .tp_basicsize = sizeof(Counts),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_members = counts_members,
};

/* -- streams that are ready -------------------------------------------------------------------- */

static int Ready_init(Ready *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pool", NULL};
    PyObject *pool;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &pool))
        return -1;
    Py_XSETREF(self->pool, Py_NewRef(pool));
    return 0;
}

static int Ready_traverse(Ready *self, visitproc visit, void *arg)
{
    Py_VISIT(self->pool);
    for (Stream *stream = self->first; stream; stream = stream->next)
        Py_VISIT(stream);
    return 0;
}

static int Ready_clear(Ready *self)
{
    Py_CLEAR(self->pool);
    Stream *stream;
    while ((stream = take_first(self)))
        Py_DECREF(stream);
    return 0;
}

static void Ready_dealloc(Ready *self)
{
    PyObject_GC_UnTrack(self);
    Ready_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(tick_doc, "tick(now): the reactor's time, in seconds; what waits is asked for again.");

static PyMethodDef ready_methods[] = {
    {"tick", (PyCFunction)Ready_tick, METH_O, tick_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ready_members[] = {
    {"now", T_DOUBLE, offsetof(Ready, now), READONLY, "The reactor's time, in seconds."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ready_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Ready",
    .tp_doc = "The streams for which something has come: a task of the `WorkerPool` that is given,\n"
              "which runs their callbacks, one stream behind the other until one blocks.",
    .tp_basicsize = sizeof(Ready),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Ready_init,
    .tp_dealloc = (destructor)Ready_dealloc,
    .tp_traverse = (traverseproc)Ready_traverse,
    .tp_clear = (inquiry)Ready_clear,
    .tp_call = (ternaryfunc)Ready_call,
    .tp_methods = ready_methods,
    .tp_members = ready_members,
};

/* -- streams ----------------------------------------------------------------------------------- */

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
    if (self->window_bits && !decompress) {
        PyErr_SetString(PyExc_RuntimeError, "window_bits before use_deflate()");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(start_doc,
             "start(connection, inbox, due, outbox, ready, counts)\n\n"
             "Serve that connection until `stop`: its lists of messages, what has come and what is\n"
             "due, in reverse; `counts` counts them. The stream is `ready` when something has come.");

static PyObject *Stream_start(Stream *self, PyObject *arguments)
{
    PyObject *connection, *inbox, *due, *outbox, *ready, *counts;
    if (!PyArg_ParseTuple(arguments, "OO!O!OO!O!", &connection, &PyList_Type, &inbox, &PyList_Type,
                          &due, &outbox, &ready_type, &ready, &counts_type, &counts))
        return NULL;
    Py_XSETREF(self->connection, Py_NewRef(connection));
    Py_XSETREF(self->inbox, Py_NewRef(inbox));
    Py_XSETREF(self->due, Py_NewRef(due));
    Py_XSETREF(self->outbox, Py_NewRef(outbox));
    Py_XSETREF(self->counts, (Counts *)Py_NewRef(counts));
    Py_XSETREF(self->ready, (Ready *)Py_NewRef(ready));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(serve_for_doc,
             "serve_for(member, listener, client, context, text_name, binary_name, timeout)\n\n"
             "Run these callbacks of the listener in that context; an empty name is no callback.\n"
             "`timeout`, in seconds, is how long one may run.");

static PyObject *Stream_serve_for(Stream *self, PyObject *arguments)
{
    PyObject *member, *listener, *client, *context, *text_name, *binary_name;
    if (!PyArg_ParseTuple(arguments, "OOOO!UUd", &member, &listener, &client, &PyContext_Type,
                          &context, &text_name, &binary_name, &self->timeout))
        return NULL;
    if (!self->connection) {
        PyErr_SetString(PyExc_RuntimeError, "serve_for() before start()");
        return NULL;
    }
    Py_XSETREF(self->member, Py_NewRef(member));
    Py_XSETREF(self->listener, Py_NewRef(listener));
    Py_XSETREF(self->client, Py_NewRef(client));
    Py_XSETREF(self->context, Py_NewRef(context));
    Py_XSETREF(self->text_name, Py_NewRef(text_name));
    Py_XSETREF(self->binary_name, Py_NewRef(binary_name));
    Py_RETURN_NONE;
}

static int Stream_traverse(Stream *self, visitproc visit, void *arg)
{
    Py_VISIT(self->connection);
    Py_VISIT(self->inbox);
    Py_VISIT(self->due);
    Py_VISIT(self->outbox);
    Py_VISIT(self->ready);
    Py_VISIT(self->counts);
    Py_VISIT(self->member);
    Py_VISIT(self->listener);
    Py_VISIT(self->client);
    Py_VISIT(self->context);
    return 0;
}

static int Stream_clear(Stream *self)
{
    Py_CLEAR(self->connection);
    Py_CLEAR(self->inbox);
    Py_CLEAR(self->due);
    Py_CLEAR(self->outbox);
    Py_CLEAR(self->ready);
    Py_CLEAR(self->counts);
    Py_CLEAR(self->member);
    Py_CLEAR(self->listener);
    Py_CLEAR(self->client);
    Py_CLEAR(self->context);
    Py_CLEAR(self->text_name);
    Py_CLEAR(self->binary_name);
    return 0;
}

PyDoc_STRVAR(stop_doc, "Let go of what `start` and `serve_for` have given. Not while it serves.");

static PyObject *Stream_stop(Stream *self, PyObject *ignored)
{
    (void)ignored;
    Stream_clear(self);
    Py_RETURN_NONE;
}

static void Stream_dealloc(Stream *self)
{
    PyObject_GC_UnTrack(self);
    Stream_clear(self);
    PyMem_Free(self->kept);
    Py_XDECREF(self->message);
    PyMem_Free(self->pending);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(serve_doc,
             "serve(worker)\n\n"
             "Take messages off the end of what is due, run the callback for each and send its\n"
             "reply, until none is left or their turn is over. What only Python can answer goes to\n"
             "`answer` and `failed` of the member. May block; raises what those raise.");

PyDoc_STRVAR(receive_doc,
             "Receive once, without waiting, and have run what has come: a watcher's callback.\n"
             "Messages go to the inbox, and the stream is ready; what else comes goes to the\n"
             "connection.");

PyDoc_STRVAR(take_pending_doc, "Give up the replies that were to share a write: bytes or `None`.");

static PyMethodDef stream_methods[] = {
    {"start", (PyCFunction)Stream_start, METH_VARARGS, start_doc},
    {"serve_for", (PyCFunction)Stream_serve_for, METH_VARARGS, serve_for_doc},
    {"stop", (PyCFunction)Stream_stop, METH_NOARGS, stop_doc},
    {"receive", (PyCFunction)Stream_receive, METH_NOARGS, receive_doc},
    {"serve", (PyCFunction)Stream_serve, METH_O, serve_doc},
    {"take_pending", (PyCFunction)Stream_take_pending, METH_NOARGS, take_pending_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stream_members[] = {
    {"bytes_received", T_ULONGLONG, offsetof(Stream, bytes_received), READONLY, "Bytes read."},
    {"bytes_sent", T_ULONGLONG, offsetof(Stream, bytes_sent), READONLY, "Bytes sent."},
    {"last_received", T_DOUBLE, offsetof(Stream, last_received), READONLY,
     "When something has come, in the reactor's time."},
    {"last_message", T_DOUBLE, offsetof(Stream, last_message), READONLY,
     "When a message has come or gone."},
    {"is_engines", T_BOOL, offsetof(Stream, is_engines), 0,
     "True while what comes is for the engine, in the middle of something."},
    {"is_open", T_BOOL, offsetof(Stream, is_open), 0, "False once nothing may be sent any more."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject stream_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Stream",
    .tp_doc = "The server's end of one connection: a non-blocking TCP socket's descriptor, which\n"
              "stays its owner's; the largest message that is taken, and the mark of the outbox,\n"
              "in bytes; how long a turn is, in seconds; the window of the agreed compression.",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Stream_init,
    .tp_dealloc = (destructor)Stream_dealloc,
    .tp_traverse = (traverseproc)Stream_traverse,
    .tp_clear = (inquiry)Stream_clear,
    .tp_methods = stream_methods,
    .tp_members = stream_members,
};

/* -- the module -------------------------------------------------------------------------------- */

PyDoc_STRVAR(deliver_doc,
             "deliver(members, prepared): send a `PreparedMessage` to each member of a list whose\n"
             "connection has a stream and nothing else to send. The list of the others.");

PyDoc_STRVAR(pack_doc,
             "pack(data, compress=None): the wire form of a `str` or of bytes, one frame, unmasked\n"
             "and never compressed; from 16 KiB on its header and its payload, which is not copied.\n"
             "Raises `UnicodeEncodeError`, and `TypeError` for what is no message.");

PyDoc_STRVAR(apply_mask_doc,
             "apply_mask(data, key): bytes-like `data` masked or unmasked with a key of 4 bytes, as\n"
             "`bytes`: RFC 6455 section 5.3.");

PyDoc_STRVAR(use_deflate_doc,
             "use_deflate(decompress, min_compress_size): inflate messages with that function, and\n"
             "have those from so many bytes on encoded by the connection, which deflates them.");

static PyObject *use_deflate(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *function;
    if (!PyArg_ParseTuple(args, "On", &function, &min_compress_size))
        return NULL;
    Py_XSETREF(decompress, Py_NewRef(function));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"apply_mask", (PyCFunction)(void (*)(void))apply_mask, METH_FASTCALL, apply_mask_doc},
    {"deliver", (PyCFunction)(void (*)(void))deliver, METH_FASTCALL, deliver_doc},
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL, pack_doc},
    {"use_deflate", (PyCFunction)use_deflate, METH_VARARGS, use_deflate_doc},
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
#define INTERN(name, text) \
    if (!names.name && !(names.name = PyUnicode_InternFromString(text))) \
        return NULL;
    FOR_EACH_NAME(INTERN)
    PyObject *module = PyModule_Create(&definition);
    if (!module || PyType_Ready(&utf8_type) < 0 || PyModule_AddType(module, &counts_type) < 0 ||
        PyModule_AddType(module, &ready_type) < 0 || PyModule_AddType(module, &stream_type) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
