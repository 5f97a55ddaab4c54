"""How refreshes ended: the last fifty of a workspace, and counts of all that there ever were, in its refresh.json.

Whoever holds the loader's lock writes it. `status` and the metrics, which are other processes, read it.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeprofile import snapshot
from edgeprofile.errors import DiskFull, EdgeprofileError, ModelError, RefreshRefused, SettingsError, StoreError

REFRESH = "refresh.json"
KEPT = 50
MESSAGE_CHARS_MAX = 1_000

# What a refresh ends with that raised an error of one of these kinds: the first that fits.
REASONS = {
    SettingsError: "settings_error",
    ModelError: "model_error",
    DiskFull: "disk_full",
    StoreError: "store_error",
}
DELTA = "delta"
SUCCESSES = ("published", "unchanged", DELTA)
ROLLED_BACK = "rolled_back"
# What becomes of a refresh that is not begun: it is tried again later, and not noted.
BUSY, HELD = "busy", "held"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a refresh ended, or that somebody rolled back. Times are seconds since 1970; `seconds` is how long it took.

    `outcome` is `published`, `unchanged`, `delta`, or the reason why not: `model_error`, `source_error`,
    `too_many_rejects`, `empty`, `shrunk`, `disk_full`, `store_error`, `interrupted`, `timed_out`, `crashed`,
    `settings_error`; or it is `rolled_back`. `evicted` is as in snapshot.Manifest. Of a delta refresh, `changed` and
    `deleted` count profiles, and all other counts are the snapshot's.
    """

    outcome: str
    started_at: float
    finished_at: float
    seconds: float = 0.0
    message: str = ""
    snapshot: str | None = None
    profiles: int = 0
    events: int = 0
    rejected: int = 0
    evicted: int | None = None
    changed: int | None = None
    deleted: int | None = None


class Attempt(NamedTuple):
    """A refresh that is under way. It began `at` by the calendar, which may jump, and by the clock that never does."""

    at: float
    on_clock: float

    @classmethod
    def begin(cls) -> Attempt:
        return cls(time.time(), time.monotonic())

    def ended(self, outcome: str, **known: Any) -> Outcome:
        """How it ended, just now; `known` is what else an Outcome says."""
        seconds = time.monotonic() - self.on_clock
        return Outcome(outcome=outcome, started_at=self.at, finished_at=time.time(), seconds=seconds, **known)

    def held(self, workspace: str) -> Outcome:
        """That it is not begun, because somebody chose an older snapshot."""
        message = f"rolled back, until somebody runs edgeprofile load --workspace {workspace}"
        return self.ended(HELD, message=message)

    def failed(self, error: BaseException) -> Outcome:
        """What kept it from its end. No message of an error that was not foreseen is in it: that may quote a value."""
        if isinstance(error, EdgeprofileError):
            return self.ended(_reason(error), message=str(error)[:MESSAGE_CHARS_MAX])
        # DuckDB makes an error of its own of a signal that comes while it sorts what it is to stream.
        if isinstance(error, KeyboardInterrupt) or "interrupted" in str(error):
            return self.ended("interrupted", message="interrupted")
        return self.ended("crashed", message=f"an unforeseen error: {type(error).__name__}")


def _reason(error: EdgeprofileError) -> str:
    if isinstance(error, RefreshRefused):
        return error.outcome
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    return "source_error"


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """What refresh.json holds. `last` has the oldest first; `counts`, `seconds` and `evicted` are sums over all.

    `settled` is the last that said what is to be served: a success or `rolled_back`. `deltas` counts those since the
    last full refresh.
    """

    counts: dict[str, int] = {}
    seconds: float = 0.0
    evicted: int = 0
    deltas: int = 0
    settled: Outcome | None = None
    last: list[Outcome] = []

    @property
    def refreshes(self) -> int:
        """How many there were, whatever came of them."""
        return sum(count for outcome, count in self.counts.items() if outcome != ROLLED_BACK)

    @property
    def rolled_back(self) -> bool:
        """Whether somebody chose an older snapshot, and nothing was loaded since."""
        return self.settled is not None and self.settled.outcome == ROLLED_BACK

    def seen_at(self, manifest: snapshot.Manifest) -> float:
        """When the warehouse was last seen to hold what this snapshot serves, in Unix seconds."""
        settled = self.settled
        if settled is not None and settled.outcome in SUCCESSES and settled.snapshot == manifest.name:
            return settled.started_at
        return manifest.started_at

    def staleness_max_s(self, cadence_s: float) -> float:
        """How old what is served gets where every refresh succeeds: what lies between the begins of two, which is one
        cadence or a refresh that takes longer, and then the next. One takes what the longest of the last ones did.
        """
        longest_s = max((each.seconds for each in self.last if each.outcome in SUCCESSES), default=0.0)
        return max(cadence_s, longest_s) + longest_s

    def plus(self, outcome: Outcome) -> Outcomes:
        """These and one more."""
        name = outcome.outcome
        deltas = self.deltas if name not in SUCCESSES else self.deltas + 1 if name == DELTA else 0
        return Outcomes(
            counts=self.counts | {name: self.counts.get(name, 0) + 1},
            seconds=self.seconds + outcome.seconds,
            evicted=self.evicted + (outcome.evicted or 0),
            deltas=deltas,
            settled=outcome if name in (*SUCCESSES, ROLLED_BACK) else self.settled,
            last=[*self.last, outcome][-KEPT:],
        )


def read(home: Path) -> Outcomes:
    """Those of a workspace; none where there is no file, or a damaged one."""
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode((home / REFRESH).read_bytes(), type=Outcomes)
    return Outcomes()


def note(home: Path, outcome: Outcome) -> None:
    """Adds one. Call it with the loader's lock held. Raises OSError."""
    temporary = home / (REFRESH + ".new")
    snapshot.write_synced(temporary, msgspec.json.encode(read(home).plus(outcome)))
    temporary.replace(home / REFRESH)
