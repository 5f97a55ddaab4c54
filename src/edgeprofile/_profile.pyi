from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self, TypeVar, final

from typing_extensions import Buffer

from edgeprofile._store import Store
from edgeprofile.record import Schema

_T = TypeVar("_T")

CONSTANT: int
SLOT: int
VALUE: int
TEXT: int
IF_TRUE: int
RUN: int
OBJECT: int
TIME_S: int
TIME_MS: int

@final
class Template:
    """What to make of a record: items, rendered in their order and joined by commas. An item is one of

    - `(CONSTANT, before)`
    - `(SLOT, number)`: that one of the texts which come with the record; nothing if it is empty
    - `(VALUE, field, before, after)`: the JSON value between two texts; nothing where the record lacks the field
    - `(TEXT, field, before, after)`: the same, the value as a JSON text or list of texts (4 as "4", a structure as its
      JSON, null and null elements left out)
    - `(IF_TRUE, field, before)`: `before`, where the value is true
    - `(RUN, runs, before, after)`: the fields of these runs, as `"name":value,…`; nothing where there are none
    - `(OBJECT, runs, before, after)`: the same, the two texts also where there are none
    - `(TIME_S, before, after, field)`, `(TIME_MS, before, after, field)`: the record's own time, of its update or of
      the event, as `"YYYY-MM-DDTHH:MM:SSZ"` or with milliseconds; if a field is given, its value where there is one

    Texts are bytes and may be left out from the right. Fields have the numbers of the schema; those from
    `first_nested` on (the audiences of a profile, the parameters of an event) stand in an object of their own, so
    a run lies on one side of it. An event's fields are those of EventsSchema.names.
    """

    def __new__(cls, items: Sequence[tuple[Any, ...]], first_nested: int, is_event: bool = False) -> Self: ...

@final
class Profile:
    """A profile that was found. Only `find` makes these. It must be let go of before the snapshot is closed."""

    @property
    def primary(self) -> bytes: ...
    @property
    def updated_us(self) -> int:
        """When it was updated, in microseconds since 1970."""

    @property
    def schema(self) -> Schema:
        """The schema of its record. One that an update changed may have more attributes than the others."""

    def recall(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make` gave when it was first asked for under this key, for a record of this schema."""

    def value(self, field: int) -> bytes | None:
        """The JSON value of a field by its number; None where it lacks the field. Raises RecordDamaged."""

    def render(self, template: Template, slots: tuple[bytes, ...] = (), bytes_max: int = ...) -> bytes:
        """What a template makes of it. Raises AnswerTooLarge past `bytes_max`, RecordDamaged."""

def find(store: Store, primary: bytes) -> Profile:
    """The profile of a primary id. Raises ProfileNotFound, RecordDamaged, FormatUnsupported."""

def render_record(
    record: Buffer, primary: bytes, template: Template, slots: tuple[bytes, ...] = (), bytes_max: int = ...
) -> bytes:
    """What a template makes of the record that was found under a primary id, for tests.

    Raises AnswerTooLarge, RecordDamaged, FormatUnsupported.
    """
