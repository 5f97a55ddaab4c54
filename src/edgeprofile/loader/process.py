"""What a process that loads is to the system: gentle, cleanly interrupted, and never an orphan."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from edgeprofile.snapshot import STEPS, AtStep

NICENESS = 10
# ioprio_set(2), for which the C library has no function: its number by the processor, the calling thread, class idle.
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13
PR_SET_PDEATHSIG = 1
# Added to its share of the memory in thousandths, by which the kernel chooses whom it ends when there is no more.
OOM_SCORE_ADJ = 500
REPEATED_SECONDS = 1.0


def be_gentle() -> None:
    """Lookups come first: lower priority on processor and disk, and the first to go where memory runs out.

    What the system does not let it do is left. Call it before there are threads, which inherit all of it.
    """
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        # Linux shares the processor among sessions before it looks at who is nice within one. See sched(7).
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))
    number = IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def leave_a_processor() -> None:
    """Keeps off one of the processors, where there are several: lookups wait for none that is busy with this then.

    Priorities are not enough: a kernel that preempts lazily lets whoever computes go on to the next tick, which is up
    to 4 ms. Call it before there are threads.
    """
    processors = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors[:-1] or processors)


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
