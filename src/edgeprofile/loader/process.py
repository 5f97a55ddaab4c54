"""How a process that loads ends: cleanly interrupted, and never an orphan."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator

from edgeprofile.snapshot import STEPS, AtStep

PR_SET_PDEATHSIG = 1
REPEATED_SECONDS = 1.0


def end_with_parent(parent: int) -> None:
    """Has the kernel send SIGTERM when the thread that started this process ends, so that no two loaders run.

    Raises SystemExit where it is gone already.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[AtStep]:
    """SIGTERM and SIGINT raise KeyboardInterrupt within. Those that follow at once are one with the first, as where a
    terminal and a supervisor both tell every process, so that cleaning up is not interrupted too; later ones are not.

    Gives what `refresh` is to call at its steps. Once the new snapshot is verified it is only a moment from being
    published, as what a delta refresh writes is from being served, so that is finished, and the interrupt comes at the
    end.
    """
    told_at: float | None = None
    finishing = False

    def end(*_: object) -> None:
        nonlocal told_at
        now = time.monotonic()
        is_repeated = told_at is not None and now - told_at < REPEATED_SECONDS
        told_at = told_at if is_repeated else now
        if not is_repeated and not finishing:
            raise KeyboardInterrupt

    def at(step: str) -> None:
        nonlocal finishing
        finishing = step not in STEPS or STEPS.index(step) >= STEPS.index("verified")

    # A shell has its background processes ignore SIGINT.
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield at
    except Exception as error:
        # Some calls of DuckDB's turn what a handler raises into an error of their own.
        if told_at is not None:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if told_at is not None:
        raise KeyboardInterrupt
