"""What a lookup reads: an open snapshot, and the choices of fields that were made of it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from edgeprofile._identifiers cimport ids_in
from edgeprofile._record cimport (
    RECORD_GOOD, RECORD_UNKNOWN_FORMAT, Cut, Run, View, checksum, cut, open_record, paste,
)
from edgeprofile._tree cimport DAMAGED, EVENTS, FOUND, IDENTIFIERS, MISSING, PROFILES, RECORDS

from edgeprofile.errors import FormatUnsupported, ProfileNotFound, RecordDamaged, SnapshotDamaged, UnknownNamespace

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* thing)

cdef enum:
    PLACE_BYTES = 12
    SUFFIX_DIGITS = 8
    PLANS_MAX = 1024
    RECALLED_MAX = 1024
    KEY_BYTES_MAX = 8192  # of a plan: no URL is longer


@cython.final
cdef class Plan:
    """A choice of fields, as runs of their numbers, and what tells its ETag from the whole answer's."""

    def __cinit__(self, runs, bint with_audiences, bint is_whole):
        cdef int i
        cdef char digits[SUFFIX_DIGITS]
        cdef uint64_t mark
        self.count = len(runs)
        self.with_audiences = with_audiences
        self.is_whole = is_whole
        self.runs = <Run*>PyMem_Malloc(sizeof(Run) * (2 * self.count + 1))
        if self.runs == NULL:
            raise MemoryError()
        self.slices = self.runs + self.count
        for i in range(self.count):
            self.runs[i].first, self.runs[i].last = runs[i]
        self.suffix = b""
        if not is_whole:
            mark = checksum(with_audiences, self.runs, self.count * sizeof(Run))
            write_hex(digits, mark, SUFFIX_DIGITS)
            self.suffix = b"-" + digits[:SUFFIX_DIGITS]

    def __dealloc__(self):
        PyMem_Free(self.runs)


@cython.final
cdef class Store:
    """An open snapshot, as lookups see it. All that it points to is in the map of its `tree`."""

    def __cinit__(self, reader):
        self.reader = reader
        self.tree = reader.tree
        self.schema = reader.schema
        self.events_schema = reader.events_schema
        self.first_audience = reader.schema.first_audience
        self.namespaces = {
            space.name.encode(): (None if number == 0 else number.to_bytes(2, "big"), space.normalize == "lower")
            for number, space in enumerate(reader.schema.namespaces)
        }
        self.plans = {b"": Plan((), True, True)}
        self.recalled = {}
        self.name_field = 1 if reader.events_schema is not None and reader.events_schema.has_id else 0
        self.find_segments(&self.records, RECORDS, reader.manifest.segments)
        self.find_segments(&self.events, EVENTS, reader.manifest.event_segments)

    def __dealloc__(self):
        PyMem_Free(self.records.starts)
        PyMem_Free(self.records.sizes)
        PyMem_Free(self.events.starts)
        PyMem_Free(self.events.sizes)

    cdef int find_segments(self, Segments* segments, int database, uint32_t count) except -1:
        """Where a database's segments are, which every look-up needs one of."""
        cdef uint32_t i
        cdef bytes key
        segments.starts = <const char**>PyMem_Malloc(sizeof(char*) * (<size_t>count + 1))
        segments.sizes = <size_t*>PyMem_Malloc(sizeof(size_t) * (<size_t>count + 1))
        if segments.starts == NULL or segments.sizes == NULL:
            raise MemoryError()
        for i in range(count):
            key = i.to_bytes(4, "big")
            if self.tree.find(database, PyBytes_AS_STRING(key), 4, &segments.starts[i], &segments.sizes[i]) != FOUND:
                raise SnapshotDamaged(f"snapshot {self.reader.name} lacks segment {i}")
        segments.count = count
        return 0

    cdef int locate(self, bytes primary, const unsigned char** record, uint32_t* size) except -1:
        """Where a profile's record is. Raises ProfileNotFound; a place outside the file is damage."""
        cdef const char* place
        cdef size_t place_bytes
        cdef uint32_t at[3]
        cdef int found = self.tree.find(
            PROFILES, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary), &place, &place_bytes
        )
        if found == MISSING:
            raise ProfileNotFound()
        if found == DAMAGED or place_bytes != PLACE_BYTES:
            return 0
        memcpy(at, place, PLACE_BYTES)
        record[0] = <const unsigned char*>slice_of(&self.records, at[0], at[1], at[2])
        size[0] = at[2] if record[0] != NULL else 0
        return 0

    cdef int open(self, View* view, bytes primary) except -1:
        """Finds a profile's record, checks it, and points `view` into it."""
        cdef const unsigned char* record = NULL
        cdef uint32_t size = 0
        cdef int code
        self.locate(primary, &record, &size)
        code = open_record(view, <const char*>record, size, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))
        if code == RECORD_UNKNOWN_FORMAT:
            raise FormatUnsupported(f"a record of snapshot {self.reader.name} has an unknown format")
        if code != RECORD_GOOD:
            raise RecordDamaged(f"a record of snapshot {self.reader.name} is damaged")
        return 0

    cdef Py_ssize_t measure(self, View* view, Plan plan, Cut* made) except -1:
        """How many bytes a plan leaves of an opened record; `made` is for `write`, before any other measuring."""
        if plan.is_whole:
            return view.body_bytes
        if cut(view, plan.runs, plan.count, self.first_audience, plan.with_audiences, plan.slices, made):
            raise RecordDamaged(f"a record of snapshot {self.reader.name} points outside itself")
        return made.bytes

    cdef void write(self, View* view, Plan plan, Cut* made, char* to) noexcept:
        """Writes what was measured."""
        if plan.is_whole:
            memcpy(to, view.body, view.body_bytes)
        else:
            paste(view, plan.slices, made, plan.with_audiences, to)

    cdef Plan plan_of(self, bytes query, parse):
        """The plan of a query string, which `parse(query, schema)` is asked for once."""
        cdef Plan plan = self.plans.get(query)
        return plan if plan is not None else self.keep(query, parse(query, self.reader.schema))

    cdef Plan plan_of_fields(self, fields, choose):
        """The plan of a list of fields, None for all, by `choose(fields, schema)`.

        A query string cannot hold the zero bytes that mark these; a field can, which the count tells apart.
        """
        cdef bytes key = b"" if fields is None else "\0".join(["", str(len(fields)), *fields]).encode()
        cdef Plan plan = self.plans.get(key)
        return plan if plan is not None else self.keep(key, choose(fields, self.reader.schema))

    def recall(self, key not None, make not None):
        """What `make()` gave when it was first asked for under this key."""
        kept = self.recalled.get(key)
        if kept is None:
            kept = make()
            if len(self.recalled) >= RECALLED_MAX:
                self.recalled = {}
            self.recalled[key] = kept
        return kept

    cdef Plan keep(self, bytes key, parsed):
        """Adds to the table of plans, unless the key is longer than any URL. When that is full it starts anew."""
        cdef Plan whole = self.plans[b""]
        cdef Plan plan = whole if parsed is None else Plan(parsed[0], parsed[1], False)
        if PyBytes_GET_SIZE(key) <= KEY_BYTES_MAX:
            if len(self.plans) >= PLANS_MAX:
                self.plans = {b"": whole}
            self.plans[key] = plan
        return plan

    cpdef bytes primary_of(self, bytes namespace, bytes value, object normalize):
        """The primary id of the profile that an identifier finds: of several, the most recently updated."""
        return self.primaries_of(namespace, value, normalize, 1)[0]

    cpdef list primaries_of(self, bytes namespace, bytes value, object normalize, Py_ssize_t count):
        """The primary ids of the `count` profiles that an identifier finds and that were updated last."""
        cdef bytes key
        cdef const char* entry
        cdef size_t entry_bytes
        cdef int found
        known = self.namespaces.get(namespace)
        if known is None:
            raise UnknownNamespace(
                "The workspace does not declare this namespace.",
                members={"valid": [name.decode() for name in self.namespaces]},
            )
        prefix, lower = known
        if lower:
            value = value.lower() if value.isascii() else normalize(value)
        if prefix is None:
            return [value]
        key = <bytes>prefix + value
        found = self.tree.find(IDENTIFIERS, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &entry, &entry_bytes)
        if found == MISSING:
            raise ProfileNotFound()
        return ids_in(key, entry, entry_bytes if found == FOUND else 0, count)

    def ids_after(self, bytes primary, Py_ssize_t count):
        cdef bytes last = primary or b""
        cdef const char* above
        cdef size_t above_bytes
        cdef int found
        cdef list ids = []
        while len(ids) < count:
            found = self.tree.find_after(
                PROFILES, PyBytes_AS_STRING(last), PyBytes_GET_SIZE(last), &above, &above_bytes
            )
            if found == MISSING:
                break
            if found == DAMAGED:
                raise SnapshotDamaged(f"a page of snapshot {self.reader.name} is damaged")
            last = above[:above_bytes]
            ids.append(last)
        return ids


@cython.final
cdef class Workspace:
    """A workspace, as lookups see it. Swapping `store` is how a new snapshot goes live."""

    def __init__(self, str name, uint32_t limited_counter):
        self.name = name
        self.limited_counter = limited_counter


def take_unheld(list stores):
    """Takes out of the list the stores that nothing but the list refers to: no lookup is at them any more.

    Counted here, and not by sys.getrefcount, because how many references a local name adds differs between Pythons.
    """
    cdef Py_ssize_t i
    cdef list unheld = []
    for i in range(len(stores) - 1, -1, -1):
        if Py_REFCNT(<PyObject*>PyList_GET_ITEM(stores, i)) == 1:
            unheld.append(stores.pop(i))
    return unheld
