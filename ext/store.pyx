"""What a lookup reads: an open snapshot with its live layer, and the choices of fields that were made of them.

What is live hides what the snapshot has under the same key. Records of the live layer may be of a later schema, with
attributes that only updates brought: a `Form` is what goes with one schema.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from edgeprofile._identifiers cimport ids_in
from edgeprofile._live cimport LIVE_IDENTIFIERS, LIVE_META, LIVE_PROFILES, Live
from edgeprofile._record cimport (
    RECORD_GOOD, RECORD_UNKNOWN_FORMAT, Cut, Run, checksum, cut, open_record, paste,
)
from edgeprofile._tree cimport DAMAGED, EVENTS, FOUND, IDENTIFIERS, MISSING, PROFILES, RECORDS

from edgeprofile.errors import (
    FormatUnsupported, ProfileNotFound, RecordDamaged, SnapshotDamaged, UnknownField, UnknownNamespace,
)

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* thing)

cdef enum:
    PLACE_BYTES = 12
    GENERATION_BYTES = 4
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
cdef class Form:
    """The records of one schema, with what was made of it: plans by query strings, and what `recall` keeps."""

    def __cinit__(self, schema):
        self.schema = schema
        self.first_audience = schema.first_audience
        self.plans = {b"": Plan((), True, True)}
        self.recalled = Recalled()

    cdef Plan keep(self, bytes key, parsed):
        """Adds to the table of plans, unless the key is longer than any URL. When that is full it starts anew."""
        cdef Plan whole = self.plans[b""]
        cdef Plan plan = whole if parsed is None else Plan(parsed[0], parsed[1], False)
        if PyBytes_GET_SIZE(key) <= KEY_BYTES_MAX:
            if len(self.plans) >= PLANS_MAX:
                self.plans = {b"": whole}
            self.plans[key] = plan
        return plan


@cython.final
cdef class Recalled:
    """A bounded table of what was made once; when it is full it starts anew."""

    def __cinit__(self):
        self.table = {}

    cdef object recall(self, key, make):
        kept = self.table.get(key)
        if kept is None:
            kept = make()
            if len(self.table) >= RECALLED_MAX:
                self.table = {}
            self.table[key] = kept
        return kept


@cython.final
@cython.freelist(128)
@cython.auto_pickle(False)
cdef class Found:
    """A record that was found and checked. Where it is live, `held` is the copy that the view points into."""


@cython.final
cdef class Store:
    """An open snapshot, as lookups see it. All that it points to is in the map of its `tree`."""

    def __cinit__(self, reader, Live live=None, read_schema=None, read_events_schema=None):
        self.reader = reader
        self.tree = reader.tree
        self.live = live
        self.read_schema, self.read_events_schema = read_schema, read_events_schema
        self.base = self.newest = Form(reader.schema)
        self.forms = {0: self.base}
        self.known_events_schema = reader.events_schema
        self.recalled = Recalled()
        self.namespaces = {
            space.name.encode(): (None if number == 0 else number.to_bytes(2, "big"), space.normalize == "lower")
            for number, space in enumerate(reader.schema.namespaces)
        }
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

    cdef Found open(self, bytes primary):
        """Finds a profile's record and checks it. Raises ProfileNotFound, RecordDamaged, FormatUnsupported."""
        cdef Found found = Found.__new__(Found)
        cdef const unsigned char* record = NULL
        cdef uint32_t size = 0
        cdef int code
        if self.live is None or not self.live.has_any() or not self.find_live(found, primary, &record, &size):
            found.form = self.base
            self.locate(primary, &record, &size)
        code = open_record(
            &found.view, <const char*>record, size, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary)
        )
        if code == RECORD_UNKNOWN_FORMAT:
            raise FormatUnsupported(f"a record of snapshot {self.reader.name} has an unknown format")
        if code != RECORD_GOOD:
            raise RecordDamaged(f"a record of snapshot {self.reader.name} is damaged")
        return found

    cdef int expect(self, bytes primary) except -1:
        """Raises ProfileNotFound where there is no such profile."""
        cdef const char* place
        cdef size_t place_bytes
        cdef bytes live = self.live_value(LIVE_PROFILES, primary)
        if live is None:
            found = self.tree.find(
                PROFILES, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary), &place, &place_bytes
            )
            if found == DAMAGED:
                raise RecordDamaged(f"a page of snapshot {self.reader.name} is damaged")
            if found == FOUND:
                return 0
        elif live:
            return 0
        raise ProfileNotFound()

    cdef Py_ssize_t measure(self, Found found, Plan plan, Cut* made) except -1:
        """How many bytes a plan leaves of an opened record; `made` is for `write`, before any other measuring."""
        if plan.is_whole:
            return found.view.body_bytes
        if cut(&found.view, plan.runs, plan.count, found.form.first_audience, plan.with_audiences, plan.slices, made):
            raise RecordDamaged(f"a record of snapshot {self.reader.name} points outside itself")
        return made.bytes

    cdef void write(self, Found found, Plan plan, Cut* made, char* to) noexcept:
        """Writes what was measured."""
        if plan.is_whole:
            memcpy(to, found.view.body, found.view.body_bytes)
        else:
            paste(&found.view, plan.slices, made, plan.with_audiences, to)

    cdef Plan plan_of(self, Form form, bytes query, parse):
        """The plan of a query string for the records of a form, which `parse` is asked for once."""
        cdef Plan plan = form.plans.get(query)
        return plan if plan is not None else form.keep(query, self.ask(form, parse, query))

    cdef Plan plan_of_fields(self, Form form, fields, choose):
        """The plan of a list of fields, None for all, by `choose`.

        A query string cannot hold the zero bytes that mark these; a field can, which the count tells apart.
        """
        cdef bytes key = b"" if fields is None else "\0".join(["", str(len(fields)), *fields]).encode()
        cdef Plan plan = form.plans.get(key)
        return plan if plan is not None else form.keep(key, self.ask(form, choose, fields))

    cdef object ask(self, Form form, parse, asked):
        """What is asked for, of one form: fields that only a later one has are known, and left out."""
        try:
            return parse(asked, form.schema, self.newest.schema)
        except UnknownField:
            if not self.learn():
                raise
            return parse(asked, form.schema, self.newest.schema)

    def recall(self, key not None, make not None):
        if self.live is not None:
            self.events_schema  # with a later one, what was made of the one before is forgotten
        return self.recalled.recall(key, make)

    # --- what is live ----------------------------------------------------------------------------------------------

    cdef bytes live_value(self, int database, bytes key):
        """None where the snapshot's own holds."""
        return self.live.find(database, key) if self.live is not None and self.live.has_any() else None

    cdef bint find_live(self, Found found, bytes primary, const unsigned char** record, uint32_t* size) except -1:
        """Where a live profile's record is; False where the snapshot's own holds. Raises ProfileNotFound of one that is
        gone: its value is empty. Before the record stands the number of its schema."""
        cdef uint32_t generation
        found.held = self.live.find(LIVE_PROFILES, primary)
        if found.held is None:
            return False
        if not found.held:
            raise ProfileNotFound()
        if PyBytes_GET_SIZE(found.held) < GENERATION_BYTES:
            raise RecordDamaged("a record of the live layer is damaged")
        memcpy(&generation, PyBytes_AS_STRING(found.held), GENERATION_BYTES)
        found.form = self.form_of(generation)
        record[0] = <const unsigned char*>PyBytes_AS_STRING(found.held) + GENERATION_BYTES
        size[0] = <uint32_t>(PyBytes_GET_SIZE(found.held) - GENERATION_BYTES)
        return True

    cdef Form form_of(self, uint32_t generation):
        form = self.forms.get(generation)
        if form is None:
            self.learn()
            form = self.forms.get(generation)
            if form is None:
                raise RecordDamaged("a record of the live layer has an unknown schema")
        return form

    cdef bint learn(self) except -1:
        """Takes over the schemas that are new in the live layer; whether there were any."""
        cdef int generation = len(self.forms)
        cdef bint is_new = False
        while self.live is not None:
            content = self.live.find(LIVE_META, b"generation:" + generation.to_bytes(4, "big"))
            if content is None:
                break
            self.newest = Form(self.read_schema(content))
            self.forms[generation] = self.newest
            generation += 1
            is_new = True
        return is_new

    @property
    def events_schema(self):
        if self.live is not None and self.live.has_any() and self.live.taken != self.events_seen:
            content = self.live.find(LIVE_META, b"events_schema")
            if content is not None and content != self.events_content:
                self.known_events_schema = self.read_events_schema(content)
                self.events_content = content
                self.recalled = Recalled()
            self.events_seen = self.live.taken
        return self.known_events_schema

    @property
    def schema(self):
        """That of the snapshot's own records."""
        return self.base.schema

    # --- identifiers -----------------------------------------------------------------------------------------------

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
        live = self.live_value(LIVE_IDENTIFIERS, key)
        if live is not None:
            if not live:
                raise ProfileNotFound()
            return ids_in(key, PyBytes_AS_STRING(live), PyBytes_GET_SIZE(live), count)
        found = self.tree.find(IDENTIFIERS, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &entry, &entry_bytes)
        if found == MISSING:
            raise ProfileNotFound()
        return ids_in(key, entry, entry_bytes if found == FOUND else 0, count)

    def ids_after(self, bytes primary, Py_ssize_t count):
        cdef bytes last = primary or b"", ours, theirs
        cdef list ids = []
        ours = self.own_after(last)
        theirs = self.live_after(last)
        while len(ids) < count and (ours is not None or theirs is not None):
            last = ours if theirs is None or ours is not None and ours < theirs else theirs
            if theirs is None or last < theirs or self.live_value(LIVE_PROFILES, last):
                ids.append(last)
            if ours == last:
                ours = self.own_after(last)
            if theirs == last:
                theirs = self.live_after(last)
        return ids

    cdef bytes own_after(self, bytes last):
        cdef const char* above
        cdef size_t above_bytes
        cdef int found = self.tree.find_after(
            PROFILES, PyBytes_AS_STRING(last), PyBytes_GET_SIZE(last), &above, &above_bytes
        )
        if found == DAMAGED:
            raise SnapshotDamaged(f"a page of snapshot {self.reader.name} is damaged")
        return above[:above_bytes] if found == FOUND else None

    cdef bytes live_after(self, bytes last):
        return self.live.find_after(LIVE_PROFILES, last) if self.live is not None and self.live.has_any() else None


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
