"""A stream of Arrow batches that one thread fills and others read.

A driver's call may not return for as long as its warehouse is silent. So it is made by a thread that nobody has to
wait for: that one puts batches into a few places, whoever reads takes them out, and `stop` lets both go.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.string cimport memset, strcmp
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from arrow cimport ArrowArray, ArrowArrayStream, ArrowSchema
from edgeprofile._columns cimport reason, stream_of

from edgeprofile.errors import SourceError

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_cond_init(pthread_cond_t* condition, const void* attributes)
    int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex)
    int pthread_cond_broadcast(pthread_cond_t* condition)
    int pthread_cond_destroy(pthread_cond_t* condition)

cdef enum:
    # One that is being read, one that waits, and one that the driver makes: more would only take memory.
    PLACES = 1

cdef struct Places:
    pthread_mutex_t lock
    pthread_cond_t changed
    ArrowArray batch[PLACES]
    int first, filled
    bint ended              # no more batches will come
    bint failed             # and that was too early
    bint stopped            # nobody wants any more
    int64_t rows
    int64_t asked_ns        # when the driver was asked for the next batch; 0 while it is not
    void* relay             # which owns this


cdef int64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


# --- the filling side ----------------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Relay:
    """Takes over an Arrow stream (an object with `__arrow_c_stream__`), to be read as one itself while `fill` runs in a
    thread of its own.

    Raises SourceError where the warehouse does not even say which columns there are.
    """

    cdef object capsule
    cdef ArrowArrayStream* source
    cdef ArrowSchema schema
    cdef Places* places

    def __cinit__(self, stream):
        self.places = <Places*>PyMem_Calloc(1, sizeof(Places))
        if self.places == NULL:
            raise MemoryError
        pthread_mutex_init(&self.places.lock, NULL)
        pthread_cond_init(&self.places.changed, NULL)
        self.places.relay = <void*>self
        self.capsule = stream.__arrow_c_stream__()
        self.source = stream_of(self.capsule)
        if self.source.get_schema(self.source, &self.schema):
            raise SourceError(reason(self.source))
        if strcmp(self.schema.format, b"+s") != 0:
            raise SourceError("the warehouse gave no columns")

    def __dealloc__(self):
        cdef ArrowArray* batch
        if self.schema.release != NULL:
            self.schema.release(&self.schema)
        if self.places != NULL:
            while self.places.filled:
                batch = taken(self.places)
                batch.release(batch)
            pthread_cond_destroy(&self.places.changed)
            pthread_mutex_destroy(&self.places.lock)
            PyMem_Free(self.places)

    @property
    def names(self):
        """The columns' names, in their order."""
        return [self.schema.children[i].name.decode(errors="replace") for i in range(self.schema.n_children)]

    @property
    def rows(self):
        """How many rows have come so far."""
        return self.places.rows

    @property
    def failed(self):
        """Whether `fill` has ended before its time."""
        return self.places.failed

    @property
    def silent_s(self):
        """For how many seconds the warehouse has been asked and has not answered; 0 while nothing is asked of it."""
        cdef int64_t asked_ns = self.places.asked_ns
        return max(clock_ns() - asked_ns, 0) / 1e9 if asked_ns else 0.0

    def fill(self):
        """Brings the warehouse's batches here, until there are no more or `stop` is called, and lets go of its stream.

        Raises SourceError where it breaks off: in the driver's own words, which may hold values.
        """
        cdef bint good = False
        try:
            good = self.bring()
        finally:
            with nogil:
                pthread_mutex_lock(&self.places.lock)
                self.places.asked_ns = 0
                self.places.ended = True
                self.places.failed = not good
                pthread_cond_broadcast(&self.places.changed)
                pthread_mutex_unlock(&self.places.lock)
                if self.source.release != NULL:
                    self.source.release(self.source)

    cdef bint bring(self) except? False:
        cdef ArrowArray batch
        cdef int failed
        while not self.places.stopped:
            memset(&batch, 0, sizeof(batch))
            self.places.asked_ns = clock_ns()
            with nogil:
                failed = self.source.get_next(self.source, &batch)
            self.places.asked_ns = 0
            if failed:
                raise SourceError(reason(self.source))
            if batch.release == NULL:
                return True
            with nogil:
                failed = not put(self.places, &batch)
            if failed:
                batch.release(&batch)
        return False

    def stop(self):
        """Lets go of whoever fills or reads: no batch comes any more, and whoever still wants one gets an error."""
        with nogil:
            pthread_mutex_lock(&self.places.lock)
            self.places.stopped = True
            pthread_cond_broadcast(&self.places.changed)
            pthread_mutex_unlock(&self.places.lock)

    def __arrow_c_stream__(self, requested_schema=None):
        """A PyCapsule. What was read through one does not come again through another."""
        cdef ArrowArrayStream* stream = <ArrowArrayStream*>PyMem_Calloc(1, sizeof(ArrowArrayStream))
        if stream == NULL:
            raise MemoryError
        stream.get_schema = give_schema
        stream.get_next = give_next
        stream.get_last_error = say_why
        stream.release = release_stream
        stream.private_data = self.places
        Py_INCREF(self)
        return PyCapsule_New(stream, b"arrow_array_stream", free_stream)


cdef bint put(Places* places, ArrowArray* batch) noexcept nogil:
    """Waits for a place; whether there was one."""
    cdef bint wanted
    pthread_mutex_lock(&places.lock)
    while places.filled == PLACES and not places.stopped:
        pthread_cond_wait(&places.changed, &places.lock)
    wanted = not places.stopped
    if wanted:
        places.batch[(places.first + places.filled) % PLACES] = batch[0]
        places.filled += 1
        places.rows += batch.length
        pthread_cond_broadcast(&places.changed)
    pthread_mutex_unlock(&places.lock)
    return wanted


cdef ArrowArray* taken(Places* places) noexcept nogil:
    cdef ArrowArray* batch = &places.batch[places.first]
    places.first = (places.first + 1) % PLACES
    places.filled -= 1
    return batch


# --- the reading side: an Arrow stream, whose readers have no interpreter ------------------------------------------

cdef int give_next(ArrowArrayStream* stream, ArrowArray* out) noexcept nogil:
    cdef Places* places = <Places*>stream.private_data
    cdef int refused = 0
    memset(out, 0, sizeof(ArrowArray))
    pthread_mutex_lock(&places.lock)
    while not places.filled and not places.ended and not places.stopped:
        pthread_cond_wait(&places.changed, &places.lock)
    if places.stopped:
        refused = EIO
    elif places.filled:
        out[0] = taken(places)[0]
        pthread_cond_broadcast(&places.changed)
    elif places.failed:
        refused = EIO
    pthread_mutex_unlock(&places.lock)
    return refused


cdef int give_schema(ArrowArrayStream* stream, ArrowSchema* out) noexcept with gil:
    """The one schema that there is, for as long as the reader keeps it: DuckDB moves nothing out of one."""
    cdef Places* places = <Places*>stream.private_data
    out[0] = (<Relay>places.relay).schema
    out.release = release_schema
    out.private_data = places.relay
    Py_INCREF(<object>places.relay)
    return 0


cdef const char* say_why(ArrowArrayStream* stream) noexcept nogil:
    return b"the warehouse broke off"


cdef void release_schema(ArrowSchema* schema) noexcept with gil:
    schema.release = NULL
    Py_DECREF(<object>schema.private_data)


cdef void release_stream(ArrowArrayStream* stream) noexcept with gil:
    stream.release = NULL
    Py_DECREF(<object>(<Places*>stream.private_data).relay)


cdef void free_stream(object capsule) noexcept:
    cdef ArrowArrayStream* stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, b"arrow_array_stream")
    if stream.release != NULL:
        stream.release(stream)
    PyMem_Free(stream)


# --- schemas -------------------------------------------------------------------------------------------------------

def names_of(described):
    """The names of the columns that an Arrow schema (an object with `__arrow_c_schema__`) describes."""
    cdef object capsule = described.__arrow_c_schema__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, b"arrow_schema")
    return [schema.children[i].name.decode(errors="replace") for i in range(schema.n_children)]
