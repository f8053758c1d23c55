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

PyDoc_STRVAR(run_ready_doc,
             "_run_ready(worker): a task of the pool, which does what is to be done for the streams that\n"
             "are ready, one behind the other until one blocks.");

PyDoc_STRVAR(resubmit_doc, "Ask for a worker again, should there have been no memory to ask.");

static PyMethodDef ready_methods[] = {
    {"_run_ready", (PyCFunction)Ready_run_ready, METH_O, run_ready_doc},
    {"resubmit", (PyCFunction)Ready_resubmit, METH_NOARGS, resubmit_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ready_members[] = {
    {"now", T_DOUBLE, offsetof(Ready, now), 0, "The time in seconds."},
    {"pool", T_OBJECT_EX, offsetof(Ready, pool), READONLY, "The workers."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ready_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Ready",
    .tp_doc = "The streams for which something is to be done, the `WorkerPool` that does it, the time.",
    .tp_basicsize = sizeof(Ready),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Ready_init,
    .tp_dealloc = (destructor)Ready_dealloc,
    .tp_traverse = (traverseproc)Ready_traverse,
    .tp_clear = (inquiry)Ready_clear,
    .tp_methods = ready_methods,
    .tp_members = ready_members,
};

/* -- streams ----------------------------------------------------------------------------------- */

static int Stream_init(Stream *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"reactor", "outbox", "metrics", "fd", "max_size", "mark", "time_slice",
                            "window_bits", NULL};
    PyObject *reactor, *outbox, *counts;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO!inndi", names, &ready_type, &reactor, &outbox,
                                     &counts_type, &counts, &self->fd, &self->max_size, &self->mark,
                                     &self->time_slice, &self->window_bits))
        return -1;
    if (self->window_bits < 0 || self->window_bits >= FORMS) {
        PyErr_SetString(PyExc_ValueError, "window_bits is 0 to 15");
        return -1;
    }
    if (self->window_bits && !decompress) {
        PyErr_SetString(PyExc_RuntimeError, "window_bits before use_deflate()");
        return -1;
    }
    Py_XSETREF(self->inbox, PyList_New(0));
    Py_XSETREF(self->due, PyList_New(0));
    if (!self->inbox || !self->due)
        return -1;
    Py_XSETREF(self->reactor, (Ready *)Py_NewRef(reactor));
    Py_XSETREF(self->outbox, Py_NewRef(outbox));
    Py_XSETREF(self->metrics, (Counts *)Py_NewRef(counts));
    Py_XSETREF(self->worker, Py_NewRef(Py_None));
    self->last_received = self->last_message = self->reactor->now;
    self->is_open = 1;
    return 0;
}

PyDoc_STRVAR(serve_for_doc,
             "serve_for(member, listener, client, context, text_name, binary_name, timeout)\n\n"
             "Run these callbacks of the listener in that context; an empty name is no callback.\n"
             "Each may run for `timeout` seconds.");

static PyObject *Stream_serve_for(Stream *self, PyObject *arguments)
{
    PyObject *member, *listener, *client, *context, *text_name, *binary_name;
    if (!PyArg_ParseTuple(arguments, "OOOO!UUd", &member, &listener, &client, &PyContext_Type,
                          &context, &text_name, &binary_name, &self->timeout))
        return NULL;
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
    Py_VISIT(self->reactor);
    Py_VISIT(self->outbox);
    Py_VISIT(self->metrics);
    Py_VISIT(self->inbox);
    Py_VISIT(self->due);
    Py_VISIT(self->worker);
    Py_VISIT(self->member);
    Py_VISIT(self->listener);
    Py_VISIT(self->client);
    Py_VISIT(self->context);
    return 0;
}

static void forget_member(Stream *self)
{
    Py_CLEAR(self->member);
    Py_CLEAR(self->listener);
    Py_CLEAR(self->client);
    Py_CLEAR(self->context);
    Py_CLEAR(self->text_name);
    Py_CLEAR(self->binary_name);
}

/* Only what may lead back here: the methods rely on the rest. */
static int Stream_clear(Stream *self)
{
    forget_member(self);
    if (self->inbox)
        PyList_SetSlice(self->inbox, 0, PyList_GET_SIZE(self->inbox), NULL);
    if (self->due)
        PyList_SetSlice(self->due, 0, PyList_GET_SIZE(self->due), NULL);
    return 0;
}

PyDoc_STRVAR(stop_doc, "Let go of what `serve_for` has given. Not while it serves.");

static PyObject *Stream_stop(Stream *self, PyObject *ignored)
{
    (void)ignored;
    forget_member(self);
    Py_RETURN_NONE;
}

static void Stream_dealloc(Stream *self)
{
    PyObject_GC_UnTrack(self);
    forget_member(self);
    Py_XDECREF(self->reactor);
    Py_XDECREF(self->outbox);
    Py_XDECREF(self->metrics);
    Py_XDECREF(self->inbox);
    Py_XDECREF(self->due);
    Py_XDECREF(self->worker);
    PyMem_Free(self->kept);
    Py_XDECREF(self->message);
    PyMem_Free(self->pending);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyDoc_STRVAR(serve_doc,
             "serve(worker)\n\n"
             "Take messages off the end of what is due, run the callback for each and send its\n"
             "reply, until none is left or the time slice is over. What only Python can answer goes to\n"
             "`answer` and `failed` of the member. May block; raises what those raise.");

PyDoc_STRVAR(receive_doc,
             "Receive once, without waiting: a watcher's callback. Messages go to the inbox and a\n"
             "worker is asked for; everything else goes to the connection's engine.");

PyDoc_STRVAR(enqueue_pending_doc, "Move the replies that share a write to the outbox, without a flush.");

PyDoc_STRVAR(make_ready_doc,
             "Ask for a worker that does what is to be done, unless one has been asked for.");

static PyMethodDef stream_methods[] = {
    {"serve_for", (PyCFunction)Stream_serve_for, METH_VARARGS, serve_for_doc},
    {"stop", (PyCFunction)Stream_stop, METH_NOARGS, stop_doc},
    {"receive", (PyCFunction)Stream_receive, METH_NOARGS, receive_doc},
    {"make_ready", (PyCFunction)Stream_make_ready, METH_NOARGS, make_ready_doc},
    {"serve", (PyCFunction)Stream_serve, METH_O, serve_doc},
    {"enqueue_pending", (PyCFunction)Stream_enqueue_pending, METH_NOARGS, enqueue_pending_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef stream_members[] = {
    {"reactor", T_OBJECT_EX, offsetof(Stream, reactor), READONLY, "Its loop, time and workers."},
    {"outbox", T_OBJECT_EX, offsetof(Stream, outbox), READONLY, "What waits to be sent."},
    {"metrics", T_OBJECT_EX, offsetof(Stream, metrics), READONLY, "What is counted."},
    {"inbox", T_OBJECT_EX, offsetof(Stream, inbox), READONLY, "Messages that wait for a worker."},
    {"due", T_OBJECT_EX, offsetof(Stream, due), READONLY, "Messages that the worker is at, in reverse."},
    {"worker", T_OBJECT_EX, offsetof(Stream, worker), 0, "Who runs its callbacks now, or `None`."},
    {"bytes_received", T_ULONGLONG, offsetof(Stream, bytes_received), 0, "Bytes read."},
    {"bytes_written", T_ULONGLONG, offsetof(Stream, bytes_written), 0,
     "Bytes sent without the outbox."},
    {"last_received", T_DOUBLE, offsetof(Stream, last_received), 0,
     "When bytes came last, in the reactor's time."},
    {"last_message", T_DOUBLE, offsetof(Stream, last_message), 0,
     "When a message came or went last."},
    {"window_bits", T_INT, offsetof(Stream, window_bits), READONLY,
     "Window of the agreed compression; 0 without one."},
    {"is_engines", T_BOOL, offsetof(Stream, is_engines), 0,
     "True while the engine is in the middle of a message and gets all input."},
    {"is_open", T_BOOL, offsetof(Stream, is_open), 0, "False once nothing may be sent."},
    {"is_paused", T_BOOL, offsetof(Stream, is_paused), 0,
     "True while reading has paused."},
    {"is_ending", T_BOOL, offsetof(Stream, is_ending), 0,
     "True once the peer's close frame, or a violation, has come."},
    {"is_flush_due", T_BOOL, offsetof(Stream, is_flush_due), 0,
     "True while the hub has been asked to flush."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject stream_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "wsmiddleware._speedups.Stream",
    .tp_doc = "One connection: reading, serving and sending everyday messages. See net/stream.py.",
    .tp_basicsize = sizeof(Stream),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
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
             "deliver(members, prepared): send a `PreparedMessage` to the connection of each member\n"
             "of a list.");

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
