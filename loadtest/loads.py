"""A load as an operator runs it, `edgeprofile load` as a process of its own: its time, its CPU and its memory."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness import BenchError

SAMPLE_INTERVAL_S = 0.02


class Load(NamedTuple):
    """One load. `anonymous_bytes` is what was its own at most, sampled: without the pages of files that it has mapped,
    which the kernel takes back when it needs them. `resident_bytes` is the most with them, which the kernel counts.
    """

    seconds: float
    cpu_s: float
    anonymous_bytes: int
    resident_bytes: int


class _Sampler(threading.Thread):
    """Looks at a process's own memory until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.most_bytes = 0
        self._status = Path(f"/proc/{pid}/status")
        self._stopping = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.wait(SAMPLE_INTERVAL_S):
            # There is no such line any more once the process has ended.
            found = re.search(r"^RssAnon:\s+(\d+) kB", self._status.read_text(), re.MULTILINE)
            self.most_bytes = max(self.most_bytes, int(found[1]) * 1024 if found else 0)

    def stop(self) -> None:
        """Ends the thread. The process must not have been waited for yet: its number may be another's then."""
        self._stopping.set()
        self.join()


def run_load(command: Sequence[str], folder: Path) -> Load:
    """Runs it to the end, in `folder`. Raises BenchError, with what it complained of, where it fails."""
    complaints = folder / "load.log"
    with complaints.open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            seconds = time.monotonic() - began
        except BaseException:
            process.terminate()
            raise
        finally:
            sampler.stop()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise BenchError(complaints.read_text().strip())
    return Load(seconds, usage.ru_utime + usage.ru_stime, sampler.most_bytes, usage.ru_maxrss * 1024)
