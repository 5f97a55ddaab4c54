# JSON text as MessagePack, for the compiled lookup.

cdef bytes packed(const char* json, size_t size)
