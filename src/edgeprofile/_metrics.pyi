from collections.abc import Sequence
from typing import Self, final

from edgeprofile._limiter import SharedMap
from edgeprofile._log_lines import RequestLog

@final
class Recorder:
    """Counts the requests of one surface, in the slots that `metrics.slots` gives.

    `statuses` has the slot of each status below 600, the first being that of all the rest; at `buckets` begins one
    for each bound and one for what took longer. ValueError where there are more or fewer, IndexError where there is
    no such counter. `log` makes the lines of requests, if there are to be such.
    """

    def __new__(
        cls,
        shared: SharedMap,
        statuses: Sequence[int],
        buckets: int,
        sum_ns: int,
        bounds_ns: Sequence[int],
        *,
        log: RequestLog | None = None,
    ) -> Self: ...
    def record(self, status: int, started_ns: int, now_ns: int | None = None) -> None:
        """Counts a request that began at `started_ns`. `now_ns` is the clock's unless given."""
    def logs(self, status: int) -> bool:
        """Whether requests of this status are to be logged."""

    def note(self, status: int, started_ns: int, method: str, request_id: bytes, workspace: str | None) -> None:
        """Logs a request, of which `request_id` is a sane one, if it is to be logged."""

def clock_ns() -> int:
    """CLOCK_MONOTONIC, which `Recorder.record` takes the start of a request in."""
