"""How work that can wait gives way to lookups: by its priority, and by where it runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path

NICENESS = 10
# ioprio_set(2), for which the C library has no function: its number by the processor, the calling thread, class idle.
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13
# Added to its share of the memory in thousandths, by which the kernel chooses whom it ends when there is no more.
OOM_SCORE_ADJ = 500


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

    Priorities are not enough: on the processor of a load, however low its own was, a thread that woke waited for up to
    4 ms now and then. Call it before there are threads.
    """
    processors = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, processors[:-1] or processors)
