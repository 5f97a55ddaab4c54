from collections.abc import Collection
from typing import Self, final

from edgeprofile._events import History
from edgeprofile._profile import Template
from edgeprofile._store import Store

_Place = tuple[int, int]

@final
class Walk(History):
    """A walk through a profile's events, the newest first or `ascending`: those between two times (microseconds since
    1970, both included), with one of the `names` if there are any, and with none of the `excluded` ones.

    It must be let go of before the snapshot is closed. Raises ProfileNotFound, ValueError for over 32 names, and in all
    it does RecordDamaged.
    """

    def __new__(
        cls,
        store: Store,
        primary: bytes,
        *,
        names: Collection[str] = (),
        excluded: Collection[str] = (),
        start_us: int = ...,
        end_us: int = ...,
        ascending: bool = False,
    ) -> Self: ...
    @property
    def is_cut(self) -> bool:
        """Whether it ended because it had read enough blocks for one request, and not because there was no more."""

    @property
    def taken(self) -> int:
        """How many events the last page has."""

    @property
    def time_us(self) -> int:
        """When the event was that `next`, `page` or `look_at` came to last, of which `value` and `render` are too."""

    def next(self) -> bool:
        """Goes to the next event; False where there is none."""

    def skip(self, count: int) -> int:
        """Passes so many events, or as many as there are, which it returns. Blocks of them are not even opened."""

    def position(self) -> _Place:
        """The place behind the event that it came to last or passed, which `go_to` goes to, also in a later snapshot.

        It is the time of that event, and how many of that time, of whatever name, have been passed: what is added at
        other times leaves it where it is.
        """

    def go_to(self, time_us: int, passed: int) -> None:
        """Goes to a place; to the start for one before that."""

    def value(self, field: int) -> bytes | None:
        """The JSON value of a field of the event, by its number in EventsSchema.names; None where it lacks it."""

    def render(self, template: Template, slots: tuple[bytes, ...] = (), bytes_max: int = ...) -> bytes:
        """What a template makes of the event."""

    def page(
        self,
        template: Template,
        limit: int,
        *,
        slots: tuple[bytes, ...] = (),
        bytes_max: int = ...,
        field: int = -1,
        limit_per_value: int = 0,
    ) -> bytes:
        """The next events, `{…},{…}`: at most `limit` and, if given, `limit_per_value` of each value of a field.

        Raises AnswerTooLarge past `bytes_max`.
        """

    def kinds(self) -> list[tuple[_Place, _Place]]:
        """For each name the places of its newest and its oldest event, the latest name first, whatever the walk is of.

        Of a history of over 1,024 blocks the newest and the oldest 512 are looked at, and of names 256. They are told
        apart by their hashes of 32 bits.
        """

    def look_at(self, number: int, at: int) -> None:
        """Opens an event by a place of `kinds`; `next` goes on where it was. Raises IndexError."""
