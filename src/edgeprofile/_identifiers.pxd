# The entries of the index of identifiers, for the compiled lookup.

cdef list ids_in(bytes key, const char* entry, Py_ssize_t entry_bytes, Py_ssize_t count)
