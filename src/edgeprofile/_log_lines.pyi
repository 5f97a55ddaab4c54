from typing import Final, Self, final

from edgeprofile._limiter import SharedMap

ENTRY_BYTES_MAX: Final[int]
METHODS: Final[frozenset[str]]
"""Those that are logged by their names."""

@final
class Lines:
    """The lines of a process's log that are not written yet, of `bytes_max` at most: what comes on top is dropped.

    An entry is a line, and lines behind it that begin with a space. Entries of up to ENTRY_BYTES_MAX, which is what
    the system writes in one piece, are not mixed with what other processes write.
    """

    def __new__(cls, bytes_max: int) -> Self: ...
    def append(self, entry: bytes) -> None:
        """Puts an entry, with its newline, behind the others. It never waits."""

    def write(self, fd: int) -> None:
        """Writes what is there, for as long as the file's reader has it wait; other threads go on meanwhile.

        Returns at once where another thread is writing. What cannot be written is dropped.
        """

    def reset(self) -> None:
        """Forgets all, in a process that was forked: the lines are its parent's to write."""

    def count_drops(self, shared: SharedMap, counter: int) -> None:
        """Has entries that are dropped from now on counted there too."""

    @property
    def dropped(self) -> int:
        """How many entries were dropped."""

@final
class RequestLog:
    """Makes the lines of a surface's requests.

    Requests of a status of at least `from_status` are logged. `good` has the eight pieces of a line around the time,
    the request id, the method, the status, the duration in microseconds, the workspace, and (the last two) what is left
    out with the workspace where that is unknown; `bad` is the same for statuses of 500 and over.
    """

    def __init__(self, lines: Lines, from_status: int, good: tuple[bytes, ...], bad: tuple[bytes, ...]) -> None: ...
    @property
    def from_status(self) -> int: ...
