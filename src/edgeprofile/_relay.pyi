from typing import Self, final

@final
class Relay:
    """Takes over an Arrow stream (an object with `__arrow_c_stream__`), to be read as one itself while `fill` runs in a
    thread of its own.

    Raises SourceError where the warehouse does not even say which columns there are.
    """

    def __new__(cls, stream: object) -> Self: ...
    @property
    def names(self) -> list[str]:
        """The columns' names, in their order."""

    @property
    def rows(self) -> int:
        """How many rows have come so far."""

    @property
    def failed(self) -> bool:
        """Whether `fill` has ended before its time."""

    @property
    def silent_s(self) -> float:
        """For how many seconds the warehouse has been asked and has not answered; 0 while nothing is asked of it."""

    def fill(self) -> None:
        """Brings the warehouse's batches here, until there are no more or `stop` is called, and lets go of its stream.

        Raises SourceError where it breaks off: in the driver's own words, which may hold values.
        """

    def stop(self) -> None:
        """Lets go of whoever fills or reads: no batch comes any more, and whoever still wants one gets an error."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A PyCapsule. What was read through one does not come again through another."""

def names_of(described: object) -> list[str]:
    """The names of the columns that an Arrow schema (an object with `__arrow_c_schema__`) describes."""
