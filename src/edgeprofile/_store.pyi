from collections.abc import Callable, Hashable
from typing import Self, TypeVar, final

from edgeprofile._live import Live
from edgeprofile.history import EventsSchema
from edgeprofile.reader import Reader
from edgeprofile.record import Runs, Schema

_T = TypeVar("_T")

@final
class Plan:
    """A choice of fields, made once for each query string and snapshot."""

    def __new__(cls, runs: Runs, with_audiences: bool, is_whole: bool) -> Self: ...

@final
class Form:
    """The records of one schema, and what was made of it. Only compiled code makes and uses these."""

    def __new__(cls, schema: Schema) -> Self: ...
    @property
    def schema(self) -> Schema: ...

@final
class Recalled:
    """A bounded table of what was made once. Only compiled code makes and uses these."""

@final
class Found:
    """A record that was found. Only compiled code makes and uses these."""

@final
class Store:
    """An open snapshot with its live layer, as lookups see them. It must be let go of before `reader` is closed.

    `read_schema` and `read_events_schema` read what the live layer has of later schemas.
    """

    def __new__(
        cls,
        reader: Reader,
        live: Live | None = None,
        read_schema: Callable[[bytes], Schema] | None = None,
        read_events_schema: Callable[[bytes], EventsSchema] | None = None,
    ) -> Self: ...
    @property
    def reader(self) -> Reader: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def events_schema(self) -> EventsSchema | None: ...
    def recall(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What `make` gave when it was first asked for under this key: a bounded table that goes with the snapshot."""

    def primary_of(self, namespace: bytes, value: bytes, normalize: Callable[[bytes], bytes]) -> bytes:
        """The primary id of the profile that an identifier finds: of several, the most recently updated.

        `normalize` lower-cases a value that is not ASCII. Raises ProfileNotFound, UnknownNamespace, RecordDamaged.
        """

    def primaries_of(
        self, namespace: bytes, value: bytes, normalize: Callable[[bytes], bytes], count: int
    ) -> list[bytes]:
        """The primary ids of the profiles that an identifier finds, those updated last first; at most `count`.

        By the primary namespace it is the value itself, be there such a profile or not. `normalize` lower-cases a
        value that is not ASCII. Raises UnknownNamespace, ProfileNotFound and RecordDamaged.
        """

    def ids_after(self, primary: bytes | None, count: int) -> list[bytes]:
        """The next `count` primary ids behind one in their binary order, or the first for None; fewer at the end.

        That one need not be there. Raises SnapshotDamaged.
        """

@final
class Workspace:
    """A workspace, as lookups see it. Setting `store` is how a new snapshot goes live; None is not ready.

    `limited_counter` counts its requests over their limit.
    """

    store: Store | None
    def __init__(self, name: str, limited_counter: int) -> None: ...
    @property
    def name(self) -> str: ...

def take_unheld(stores: list[Store]) -> list[Store]:
    """Takes out of the list the stores that nothing but the list refers to: no lookup is at them any more."""
