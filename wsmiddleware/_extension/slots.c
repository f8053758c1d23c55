/* Attributes of Python objects whose class has them in `__slots__`. */
#include "stream.h"

#include <structmember.h>

#define DEFINE(field, text) .field = {.name = text},
Slots slots = {FOR_EACH_SLOT(DEFINE)};

static int find(Slot *slot, PyTypeObject *type)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, slot->name);
    if (!found)
        return -1;
    int is_slot = Py_IS_TYPE(found, &PyMemberDescr_Type) &&
                  ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT_EX;
    if (is_slot) {
        slot->offset = ((PyMemberDescrObject *)found)->d_member->offset;
        Py_XSETREF(slot->type, (PyTypeObject *)Py_NewRef(type));
    } else {
        PyErr_Format(PyExc_TypeError, "%s.%s must be a slot", type->tp_name, slot->name);
    }
    Py_DECREF(found);
    return is_slot ? 0 : -1;
}

/* The address of an object's slot; NULL with an exception where its class has no such slot. */
static PyObject **place(Slot *slot, PyObject *object)
{
    if (!Py_IS_TYPE(object, slot->type) && find(slot, Py_TYPE(object)) < 0)
        return NULL;
    return (PyObject **)((char *)object + slot->offset);
}

/* The value, borrowed; NULL with an exception where there is no such slot, or it is not set. */
PyObject *get_slot(Slot *slot, PyObject *object)
{
    PyObject **at = place(slot, object);
    if (at && !*at)
        PyErr_Format(PyExc_AttributeError, "%s.%s is not set", Py_TYPE(object)->tp_name, slot->name);
    return at ? *at : NULL;
}

/* The same, but only where the class is the one asked last: else, or where it is not set, NULL without
 * an exception. */
PyObject *peek_slot(const Slot *slot, PyObject *object)
{
    return Py_IS_TYPE(object, slot->type) ? *(PyObject **)((char *)object + slot->offset) : NULL;
}

int set_slot(Slot *slot, PyObject *object, PyObject *value)
{
    PyObject **at = place(slot, object);
    if (at)
        Py_XSETREF(*at, Py_NewRef(value));
    return at ? 0 : -1;
}
