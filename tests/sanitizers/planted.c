/* What the sanitizers must find, or a run that finds nothing means nothing: asan.py calls these. */
#include "stream.h"

_Thread_local unsigned char buffer[BUFFER_SIZE + LARGE];

/* The byte behind the end of what a `bytes` lies in. */
static PyObject *heap(PyObject *module, PyObject *data)
{
    (void)module;
    return PyLong_FromLong(PyBytes_AS_STRING(data)[PyBytes_GET_SIZE(data) + 1]);
}

/* The byte behind those that have come on a socket. */
static PyObject *fence(PyObject *module, PyObject *fd)
{
    (void)module;
    ssize_t got = recv(PyLong_AsLong(fd), buffer, BUFFER_SIZE, MSG_DONTWAIT);
    return PyLong_FromLong(buffer[got]);
}

/* One more than an `int` can be. */
static PyObject *undefined(PyObject *module, PyObject *number)
{
    (void)module;
    int next = PyLong_AsLong(number);
    return PyLong_FromLong(next + 1);
}

static PyMethodDef functions[] = {
    {"heap", heap, METH_O, NULL},
    {"fence", fence, METH_O, NULL},
    {"undefined", undefined, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "planted", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit_planted(void)
{
    return PyModule_Create(&definition);
}
