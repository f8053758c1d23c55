/* From messages through the listener's callbacks to replies. */
#include "stream.h"

#include <time.h>

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Let the callback that runs in `worker` have `timeout` seconds from now. */
static int set_deadline(const Stream *self, PyObject *worker, double timeout)
{
    PyObject *ends = PyFloat_FromDouble(self->reactor->now + timeout);
    int result = ends ? set_slot(&slots.deadline, worker, ends) : -1;
    Py_XDECREF(ends);
    return result;
}

/* Let Python handle what is not everyday: the exception that is set, or else a `reply` that is no `str`
 * or `bytes`, or that the outbox has no room for. Leaves the callbacks' context first, because both
 * methods may run a callback, which enters it. */
static int hand_to_member(Stream *self, PyObject *reply, PyObject *worker, PyObject *name)
{
    PyObject *exception = PyErr_GetRaisedException(), *result = NULL;
    if (PyContext_Exit(self->context) == 0 && (!self->pending || flush_pending(self) == 0))
        result = PyObject_CallMethodObjArgs(self->member, exception ? names.failed : names.answer,
                                            exception ? exception : reply, worker, name, NULL);
    int is_done = result && set_deadline(self, worker, self->timeout) == 0;
    Py_XDECREF(result);
    Py_XDECREF(exception);
    /* Enter the context again, whatever has happened: the caller leaves it. */
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
    int is_last = !PyList_GET_SIZE(self->due); /* asked after the callback: closing empties `due` */
    int is_plain = reply && (PyUnicode_CheckExact(reply) || PyBytes_CheckExact(reply));
    int result = !reply ? -1 : reply == Py_None ? 0 : is_plain ? answer(self, reply, is_last) : 1;
    if (result != 0)
        result = hand_to_member(self, reply, worker, name);
    Py_XDECREF(reply);
    return result;
}

/* As `Worker.is_alone`; `references` were counted before the callback. */
static int is_alone(PyObject *worker, PyObject *greenlet, Py_ssize_t references)
{
    return Py_REFCNT(greenlet) <= references && peek_slot(&slots.is_fresh, worker) == Py_True;
}

/* Take messages off the end of `due`, until none is left or the time slice is over. */
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
    double ends = rest > 1 ? now() + self->time_slice : 0;
    while (result == 0 && rest > 0) {
        PyObject *message = Py_NewRef(PyList_GET_ITEM(due, rest - 1));
        result = PyList_SetSlice(due, rest - 1, rest, NULL);
        if (result == 0)
            result = serve_one(self, message, worker);
        Py_DECREF(message);
        /* The next callback may block, and so may what follows. */
        if (result == 0 && PyList_GET_SIZE(due) && self->pending && !self->is_flush_due)
            result = call((PyObject *)self, names.flush_soon, NULL);
        /* No callback finds greenlet-locals of the one before. */
        if (result == 0 && (PyDict_GET_SIZE(locals) || PyList_GET_SIZE(links)))
            result = call(worker, names.forget, NULL) < 0 ? -1 : set_deadline(self, worker, self->timeout);
        rest = PyList_GET_SIZE(due); /* not before: a finalizer may have closed the connection */
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

/* True when only `Connection.work` knows what to do: reading has paused, or the end has begun. */
static int is_special(const Stream *self)
{
    return !self->is_open || self->is_paused || self->is_ending;
}

/* Move all messages of the inbox to `due`, in reverse order. */
static int make_due(Stream *self)
{
    Py_ssize_t count = PyList_GET_SIZE(self->inbox);
    self->metrics->messages_received += count;
    for (Py_ssize_t i = count - 1; i >= 0; i--)
        if (PyList_Append(self->due, PyList_GET_ITEM(self->inbox, i)) < 0)
            return -1;
    return PyList_SetSlice(self->inbox, 0, count, NULL);
}

/* The everyday part of `Connection.work`. Gives 0 when nothing is left to do, 1 when something is for
 * `Connection.work`, 2 when messages are left because the time slice is over, -1 with an exception. */
static int work(Stream *self, PyObject *worker)
{
    if (!self->member || self->worker != Py_None || PyList_GET_SIZE(self->due) || is_special(self))
        return 1;
    Py_SETREF(self->worker, Py_NewRef(worker));
    int result = make_due(self) < 0 ? -1 : serve(self, worker);
    /* Sent now: it must not wait for callbacks of other connections. */
    if (result == 0 && !PyList_GET_SIZE(self->due))
        result = flush_outbox(self);
    self->last_message = self->reactor->now; /* `worked`: from now on the peer may be idle */
    Py_SETREF(self->worker, Py_NewRef(Py_None));
    if (result == 0 && PyList_GET_SIZE(self->due))
        result = 2;
    else if (result == 0)
        result = PyList_GET_SIZE(self->inbox) || is_special(self);
    return result;
}

/* Ask the pool to run `Ready_run_ready`, unless it has been asked. */
static int submit(Ready *self)
{
    if (self->is_submitted)
        return 0;
    PyObject *task = PyObject_GetAttr((PyObject *)self, names.run_ready);
    if (!task)
        return -1;
    self->is_submitted = 1;
    int result = call(self->pool, names.submit, task);
    Py_DECREF(task);
    if (result < 0)
        self->is_submitted = 0;
    return result;
}

/* Append the stream to those that wait for a worker, unless it is there already. */
static int make_ready(Stream *self)
{
    if (self->is_ready)
        return 0;
    Ready *ready = self->reactor;
    Py_INCREF(self);
    self->is_ready = 1;
    if (ready->last)
        ready->last->next = self;
    else
        ready->first = self;
    ready->last = self;
    return submit(ready);
}

/* Ctrl-C in a callback: passed on to the main greenlet. The connection itself is not broken. */
static int let_through(Stream *self)
{
    PyObject *exception = PyErr_GetRaisedException();
    if (make_ready(self) < 0)
        PyErr_Clear(); /* no memory: the clock asks again */
    PyErr_SetRaisedException(exception);
    return -1;
}

/* Do what is to be done for a stream that was ready: here, and in `Connection.work` where that is
 * needed. */
static int run(Stream *self, PyObject *worker)
{
    int result = work(self, worker);
    if (result < 0)
        return PyErr_ExceptionMatches(PyExc_Exception) ? tell(self, names.broken) : let_through(self);
    if (result == 0)
        return 0;
    PyObject *is_slice_over = result == 2 ? Py_True : NULL;
    PyObject *done = PyObject_CallMethodObjArgs((PyObject *)self, names.work, worker, is_slice_over, NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Remove and give the stream that has waited longest, or NULL. The caller owns the reference. */
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

/* Run all streams that are ready, one after the other. */
PyObject *Ready_run_ready(Ready *self, PyObject *worker)
{
    self->is_submitted = 0;
    PyObject *greenlet = Py_XNewRef(get_slot(&slots.greenlet, worker));
    Py_ssize_t references = greenlet ? Py_REFCNT(greenlet) : 0;
    int result = !greenlet || get_slot(&slots.is_fresh, worker) == NULL ? -1 : 0;
    Stream *stream;
    while (result == 0 && (stream = take_first(self))) {
        /* Asked before this one runs: should it block, another worker goes on with the rest. */
        if (self->first)
            result = submit(self);
        if (run(stream, worker) < 0)
            result = -1;
        Py_DECREF(stream);
        if (!is_alone(worker, greenlet, references))
            break;
    }
    PyObject *exception = PyErr_GetRaisedException();
    if (self->first && submit(self) < 0)
        result = -1;
    if (exception)
        PyErr_SetRaisedException(exception);
    Py_XDECREF(greenlet);
    return result < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *Ready_resubmit(Ready *self, PyObject *ignored)
{
    (void)ignored;
    self->is_submitted = 0;
    return self->first && submit(self) < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *Stream_make_ready(Stream *self, PyObject *ignored)
{
    (void)ignored;
    return make_ready(self) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Have run what a read has brought: the messages from index `before` of the inbox on, and behind them
 * `rest`, the bytes for the engine (or NULL). */
static int take_in(Stream *self, Py_ssize_t before, PyObject *rest)
{
    PyObject *inbox = self->inbox;
    int result = 0;
    self->last_received = self->reactor->now;
    if (PyList_GET_SIZE(inbox) > before) {
        if (self->is_open) {
            self->last_message = self->reactor->now;
            result = self->worker == Py_None ? make_ready(self)
                                             : call((PyObject *)self, names.pause_if_needed, NULL);
        } else {
            result = PyList_SetSlice(inbox, before, PyList_GET_SIZE(inbox), NULL);
        }
    }
    if (result != 0 || !rest)
        return result;
    PyObject *done = PyObject_CallMethodObjArgs((PyObject *)self, names.take, rest,
                                                self->is_slice_over ? Py_True : NULL, NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The stream has ended or broken: `lost` where the peer or the system did it, `broken` where we did. */
static int lose(Stream *self)
{
    int is_theirs = !PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OSError);
    return tell(self, is_theirs ? names.lost : names.broken);
}

PyObject *Stream_receive(Stream *self, PyObject *ignored)
{
    (void)ignored;
    int result = 0;
    if (self->is_engines || self->fd < 0) {
        result = call((PyObject *)self, names.read, NULL);
    } else {
        PyObject *rest = NULL;
        Py_ssize_t before = PyList_GET_SIZE(self->inbox);
        Found found = read_some(self, self->inbox, &rest);
        if (found == FAILED || found == END)
            result = lose(self);
        else if (found == SOMETHING && (result = take_in(self, before, rest)) < 0)
            result = tell(self, names.broken); /* not raised: gevent would stop the watcher */
        Py_XDECREF(rest);
    }
    return result < 0 ? NULL : Py_NewRef(Py_None);
}
