/* From messages through the listener to replies: an ordinary day of a connection. */
#include "stream.h"

#include <time.h>

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* From now on the callback that runs in `worker` has so much time, in seconds. */
static int set_deadline(const Stream *self, PyObject *worker, double timeout)
{
    PyObject *ends = PyFloat_FromDouble(self->ready->now + timeout);
    int result = ends ? set_slot(&slots.deadline, worker, ends) : -1;
    Py_XDECREF(ends);
    return result;
}

/* What is Python's to answer: an exception, where one is set, else `reply`, which is no `str` or
 * `bytes` or has no room. Outside of the callbacks' context: both may call one. */
static int hand_to_member(Stream *self, PyObject *reply, PyObject *worker, PyObject *name)
{
    PyObject *exception = PyErr_GetRaisedException(), *result = NULL;
    if (PyContext_Exit(self->context) == 0 && (!self->pending || flush_pending(self) == 0))
        result = PyObject_CallMethodObjArgs(self->member, exception ? names.failed : names.answer,
                                            exception ? exception : reply, worker, name, NULL);
    int is_done = result && set_deadline(self, worker, self->timeout) == 0;
    Py_XDECREF(result);
    Py_XDECREF(exception);
    /* Again inside, whatever has happened: the caller leaves it. */
    exception = PyErr_GetRaisedException();
    if (PyContext_Enter(self->context) < 0)
        is_done = 0;
    if (exception)
        PyErr_SetRaisedException(exception);
    return is_done ? 0 : -1;
}

/* Run the callback for `message` and send its reply. */
static int serve_one(Stream *self, PyObject *message, PyObject *worker)
{
    PyObject *name = PyBytes_CheckExact(message) ? self->binary_name : self->text_name;
    if (!PyUnicode_GET_LENGTH(name))
        return 0;
    PyObject *arguments[] = {self->listener, self->client, message};
    PyObject *reply = PyObject_VectorcallMethod(name, arguments, 3, NULL);
    int is_last = !PyList_GET_SIZE(self->due); /* closing drops what is left */
    int is_plain = reply && (PyUnicode_CheckExact(reply) || PyBytes_CheckExact(reply));
    int result = !reply ? -1 : reply == Py_None ? 0 : is_plain ? answer(self, reply, is_last) : 1;
    if (result != 0)
        result = hand_to_member(self, reply, worker, name);
    Py_XDECREF(reply);
    return result;
}

/* 0 where a slot has `None` or `False`, else 1; -1 with an exception. */
static int is_true(Slot *slot, PyObject *object)
{
    PyObject *value = get_slot(slot, object);
    return value ? value != Py_None && value != Py_False : -1;
}

/* As `Worker.is_alone`, with the references that there were before the callback. */
static int is_alone(PyObject *worker, PyObject *greenlet, Py_ssize_t references)
{
    return Py_REFCNT(greenlet) <= references && peek_slot(&slots.is_fresh, worker) == Py_True;
}

/* Take messages off the end of what is due, until none is left or their turn is over. */
static int serve(Stream *self, PyObject *worker)
{
    PyObject *due = self->due, *links = Py_XNewRef(get_slot(&slots.links, worker));
    PyObject *greenlet = links ? Py_XNewRef(get_slot(&slots.greenlet, worker)) : NULL;
    PyObject *locals = greenlet ? PyObject_GenericGetDict(greenlet, NULL) : NULL;
    Py_ssize_t references = greenlet ? Py_REFCNT(greenlet) : 0;
    int result = -1;
    if (!locals || set_deadline(self, worker, self->timeout) < 0 || PyContext_Enter(self->context) < 0)
        goto end;
    result = 0;
    Py_ssize_t rest = PyList_GET_SIZE(due);
    double ends = rest > 1 ? now() + self->turn : 0;
    while (result == 0 && rest > 0) {
        PyObject *message = Py_NewRef(PyList_GET_ITEM(due, rest - 1));
        result = PyList_SetSlice(due, rest - 1, rest, NULL);
        if (result == 0)
            result = serve_one(self, message, worker);
        Py_DECREF(message);
        /* The next callback may block, and so may what follows. */
        if (result == 0 && PyList_GET_SIZE(due) && self->pending && !self->is_flush_due)
            self->is_flush_due = 1, result = call(self->connection, names.flush_soon, NULL);
        /* Nothing of a callback's greenlet-locals is there for the next one. */
        if (result == 0 && (PyDict_GET_SIZE(locals) || PyList_GET_SIZE(links)))
            result = call(worker, names.forget, NULL) < 0 ? -1 : set_deadline(self, worker, self->timeout);
        rest = PyList_GET_SIZE(due); /* only now: a finalizer may have closed the connection */
        if (rest && (now() > ends || !is_alone(worker, greenlet, references)))
            break;
    }
    PyObject *exception = PyErr_GetRaisedException();
    if (PyContext_Exit(self->context) < 0 || (self->pending && flush_pending(self) < 0) ||
        set_deadline(self, worker, Py_HUGE_VAL) < 0)
        result = -1;
    if (exception)
        PyErr_SetRaisedException(exception);
end:
    Py_XDECREF(locals);
    Py_XDECREF(greenlet);
    Py_XDECREF(links);
    return result;
}

PyObject *Stream_serve(Stream *self, PyObject *worker)
{
    if (!self->member) {
        PyErr_SetString(PyExc_RuntimeError, "serve() before serve_for()");
        return NULL;
    }
    return serve(self, worker) < 0 ? NULL : Py_NewRef(Py_None);
}

/* 1 when what is to be done is for `Connection._run`: it is paused, or at its end. */
static int is_special(const Stream *self)
{
    int result = self->is_open ? is_true(&slots.is_paused, self->connection) : 1;
    return result ? result : is_true(&slots.ending, self->connection);
}

/* What has come is due now, the first of it last. */
static int make_due(Stream *self)
{
    Py_ssize_t count = PyList_GET_SIZE(self->inbox);
    self->counts->messages_received += count;
    for (Py_ssize_t i = count - 1; i >= 0; i--)
        if (PyList_Append(self->due, PyList_GET_ITEM(self->inbox, i)) < 0)
            return -1;
    return PyList_SetSlice(self->inbox, 0, count, NULL);
}

/* `Connection._run` for an ordinary day: 0 when there is nothing left to do, 1 when there is; 2 when
 * the turn of what is left is over. */
static int run(Stream *self, PyObject *worker)
{
    int result = !self->member || PyList_GET_SIZE(self->due) ? 1 : is_special(self);
    if (result == 0)
        result = is_true(&slots.worker, self->connection);
    if (result != 0)
        return result;
    if (set_slot(&slots.worker, self->connection, worker) < 0)
        return -1;
    result = make_due(self) < 0 ? -1 : serve(self, worker);
    /* As `_run` does: what callbacks have queued does not wait for those of other connections. */
    if (result == 0 && !PyList_GET_SIZE(self->due))
        result = flush_outbox(self);
    self->last_message = self->ready->now; /* `worked`: from now on the peer may be idle */
    PyObject *exception = PyErr_GetRaisedException();
    if (set_slot(&slots.worker, self->connection, Py_None) < 0)
        result = -1;
    if (exception)
        PyErr_SetRaisedException(exception);
    if (result == 0 && PyList_GET_SIZE(self->due))
        result = 2;
    else if (result == 0)
        result = PyList_GET_SIZE(self->inbox) ? 1 : is_special(self);
    return result;
}

/* What is to be done for a stream that was ready. */
static int run_stream(Stream *self, PyObject *worker)
{
    if (!self->connection)
        return 0;
    PyObject *connection = Py_NewRef(self->connection);
    int result = run(self, worker);
    PyObject *left = result > 0 ? PyObject_CallMethodObjArgs(
                                      connection, names.run, worker, result == 2 ? Py_True : NULL, NULL)
                                : NULL;
    if (result > 0)
        result = left ? 0 : -1;
    else if (result < 0)
        result = tell(connection, names.broken);
    Py_XDECREF(left);
    Py_DECREF(connection);
    return result;
}

/* Have the pool run us, once. */
static int submit(Ready *self)
{
    if (self->is_submitted || !self->pool)
        return 0;
    self->is_submitted = 1;
    if (call(self->pool, names.submit, (PyObject *)self) == 0)
        return 0;
    self->is_submitted = 0;
    return -1;
}

/* The one that has waited longest, or NULL. */
Stream *take_first(Ready *self)
{
    Stream *first = self->first;
    if (first) {
        self->first = first->next;
        first->next = NULL;
        first->is_ready = 0;
        if (!self->first)
            self->last = NULL;
    }
    return first;
}

/* One stream behind the other; should one block, another worker goes on with those behind it. */
PyObject *Ready_call(Ready *self, PyObject *arguments, PyObject *keywords)
{
    static char *words[] = {"worker", NULL};
    PyObject *worker;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O", words, &worker))
        return NULL;
    self->is_submitted = 0;
    PyObject *greenlet = Py_XNewRef(get_slot(&slots.greenlet, worker));
    Py_ssize_t references = greenlet ? Py_REFCNT(greenlet) : 0;
    int result = !greenlet || get_slot(&slots.is_fresh, worker) == NULL ? -1 : 0;
    Stream *stream;
    while (result == 0 && (stream = take_first(self))) {
        /* Before it runs: should it block, another worker goes on with those behind it. */
        if (self->first)
            result = submit(self);
        if (run_stream(stream, worker) < 0)
            result = -1;
        Py_DECREF(stream);
        if (!is_alone(worker, greenlet, references))
            break;
    }
    if (self->first && submit(self) < 0)
        result = -1;
    Py_XDECREF(greenlet);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

/* The reactor's time goes on; what waits is asked for again, should there have been no memory. */
PyObject *Ready_tick(Ready *self, PyObject *time)
{
    self->now = PyFloat_AsDouble(time);
    if (PyErr_Occurred())
        return NULL;
    self->is_submitted = 0;
    return self->first && submit(self) < 0 ? NULL : Py_NewRef(Py_None);
}

/* See to it that somebody runs what has come. */
static int make_ready(Stream *self)
{
    int is_running = is_true(&slots.worker, self->connection);
    if (is_running)
        return is_running < 0 ? -1 : call(self->connection, names.pause, NULL);
    if (self->is_ready)
        return 0;
    Ready *ready = self->ready;
    Py_INCREF(self);
    self->is_ready = 1;
    if (ready->last)
        ready->last->next = self;
    else
        ready->first = self;
    ready->last = self;
    return submit(ready);
}

/* Messages from the `before`th of the inbox on have come, and behind them what is for the engine. */
static int take_in(Stream *self, Py_ssize_t before, PyObject *rest)
{
    PyObject *inbox = self->inbox;
    int result = 0;
    self->last_received = self->ready->now;
    if (PyList_GET_SIZE(inbox) > before) {
        if (self->is_open) {
            self->last_message = self->ready->now;
            result = make_ready(self);
        } else {
            result = PyList_SetSlice(inbox, before, PyList_GET_SIZE(inbox), NULL);
        }
    }
    if (result != 0 || !rest)
        return result;
    PyObject *done = PyObject_CallMethodObjArgs(self->connection, names.receive, rest,
                                                self->is_turn_over ? Py_True : NULL, NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The stream has ended, or it broke: by the other side or the system, or by us. */
static int lose(PyObject *connection)
{
    int is_theirs = !PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OSError);
    return tell(connection, is_theirs ? names.lost : names.broken);
}

PyObject *Stream_receive(Stream *self, PyObject *ignored)
{
    (void)ignored;
    if (!self->connection)
        Py_RETURN_NONE;
    PyObject *connection = Py_NewRef(self->connection), *inbox = Py_NewRef(self->inbox);
    PyObject *rest = NULL;
    Py_ssize_t before = PyList_GET_SIZE(inbox);
    int result;
    if (self->is_engines) {
        result = call(connection, names.on_readable, NULL);
    } else {
        Found found = read_some(self, inbox, &rest);
        if (found == FAILED || found == END)
            result = lose(connection);
        else
            result = found == SOMETHING && self->connection ? take_in(self, before, rest) : 0;
        if (found == SOMETHING && result < 0) /* raised, gevent would look at the socket no more */
            result = tell(connection, names.broken);
    }
    Py_XDECREF(rest);
    Py_DECREF(inbox);
    Py_DECREF(connection);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}
