from collections.abc import Collection
from typing import Self, final

from typing_extensions import disjoint_base

from edgeprofile._store import Store

@final
class Wanted:
    """What a query asks of a profile's events: at most `limit` of those with one of these names (any, if none is
    given), from `start_us` to `end_us`, both included, behind `cursor` (16 bytes) if there is one.

    Times are microseconds since 1970. Raises ValueError for over 32 names or a limit that is not from 1 to 100.
    """

    def __new__(cls, names: Collection[str], start_us: int, end_us: int, limit: int, cursor: bytes | None) -> Self: ...

@disjoint_base
class History:
    """A profile's events. `blocks_read` and `records_read` say what it took to find some of them."""

    @property
    def blocks_read(self) -> int: ...
    @property
    def records_read(self) -> int: ...

@final
class Names:
    """Names of events, up to 32 of them. Raises ValueError for more."""

    def __new__(cls, names: Collection[str]) -> Self: ...

@final
class Page(History):
    """A page of events, and how many are on it. Only `read_page` makes these."""

    @property
    def events(self) -> int: ...
    def body(self) -> bytes:
        """`{"events":[…],"cursor":…}`. The cursor is null where nothing more is to come."""

def read_page(store: Store, primary: bytes, wanted: Wanted, bytes_max: int) -> Page:
    """The page of a profile's events that a query asks for, of at most so many bytes unless one event has more.

    Raises ProfileNotFound, MalformedQuery for a cursor of other events, RecordDamaged and FormatUnsupported.
    """
