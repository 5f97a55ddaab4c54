"""The lines that our processes log: as text for people or as JSON for programs, an entry each, in one piece.

In a process that serves, a thread of its own writes them, and whoever logs only puts them into memory. So a reader of
standard error that has stopped reading keeps nobody from answering; what it misses is dropped, and counted.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging.config
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import msgspec

from edgeprofile._limiter import SharedMap
from edgeprofile._log_lines import ENTRY_BYTES_MAX, Lines, RequestLog
from edgeprofile.metrics import Counter
from edgeprofile.settings import Log

STDERR = 2
# Of each of two buffers, which are memory only as far as they are used. At 200 bytes a request it takes 200,000
# requests a second to fill one between two writes.
HELD_BYTES_MAX = 4 * 1024 * 1024
WRITE_INTERVAL_S = 0.1
STOP_SECONDS_MAX = 1.0
SAID_INTERVAL_S = 10.0
# Which requests are logged: those of this status and over.
FROM_STATUS = {"none": 1_000, "failed": 500, "all": 0}
CUT = "…"
CHARACTER_BYTES_MAX = 6  # as JSON has a NUL
NAME_CHARS_MAX = 128
# A line of a request; each NUL stands for what differs, and the last two around what is left out without a workspace.
REQUEST = {
    "text": "\0 {upper} [{pid}] request request_id=\0 surface={surface} method=\0 status=\0 duration_us=\0"
    " workspace=\0\0\n",
    "json": '{{"time":"\0","level":"{lower}","pid":{pid},"message":"request","request_id":"\0","surface":"{surface}",'
    '"method":"\0","status":\0,"duration_us":\0,"workspace":"\0"\0}}\n',
}
# What could begin a line of its own, or move a terminal's cursor, is shown and not done.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_SHOWN |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}

log = logging.getLogger("edgeprofile")
Entry = dict[str, Any]


class Formatter(logging.Formatter):
    """Makes an entry of up to ENTRY_BYTES_MAX of a record. Its `extra` may have a `request_id` and a `traceback`."""

    def __init__(self, shape: Literal["text", "json"]) -> None:
        super().__init__()
        self._encoded = {"text": _text, "json": _json}[shape]

    def format(self, record: logging.LogRecord) -> str:
        entry: Entry = {
            "time": f"{dt.datetime.fromtimestamp(record.created, dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "level": record.levelname.lower(),
            "pid": record.process,
            "logger": record.name[:NAME_CHARS_MAX],
            "message": _whole(record.getMessage())[: ENTRY_BYTES_MAX + 1],
        }
        if record.name == log.name:
            del entry["logger"]
        if request_id := getattr(record, "request_id", None):
            entry["request_id"] = request_id
        traceback = self.formatException(record.exc_info) if record.exc_info else getattr(record, "traceback", "")
        if traceback:
            entry["traceback"] = _whole(traceback.rstrip("\n"))[-ENTRY_BYTES_MAX - 1 :]
        return self._fitted(entry)

    def _fitted(self, entry: Entry) -> str:
        """What is too long is cut, little by little: a traceback at its start, because its end says what went wrong."""
        while (excess := len((line := self._encoded(entry)).encode()) - ENTRY_BYTES_MAX) > 0:
            cut = len(CUT) + excess // CHARACTER_BYTES_MAX + 1
            if len(entry.get("traceback", "")) > len(CUT):
                entry["traceback"] = CUT + entry["traceback"][cut:]
            else:
                entry["message"] = entry["message"][:-cut] + CUT
        return line


def _whole(text: str) -> str:
    """Text of which all can be written: what stands for a byte that was no text is shown."""
    return text.encode("utf-8", "backslashreplace").decode()


def _json(entry: Entry) -> str:
    return msgspec.json.encode(entry).decode() + "\n"


def _text(entry: Entry) -> str:
    """One line, and those of a traceback set in, so that none of them looks like an entry of its own."""
    logger = f"{entry['logger']}: " if "logger" in entry else ""
    message = f"{logger}{entry['message']}".translate(_SHOWN)
    line = f"{entry['time']} {entry['level'].upper()} [{entry['pid']}] {message}\n"
    lines = entry["traceback"].split("\n") if "traceback" in entry else []
    return line + "".join(f"    {each.translate(_SHOWN)}\n" for each in lines)


class Handler(logging.Handler):
    """Has an entry written by the process's `writer`, or writes it where there is none."""

    writer: ClassVar[Writer | None] = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            LINES.append(self.format(record).encode())
        except Exception:
            self.handleError(record)
        if self.writer is None:
            LINES.write(STDERR)
        else:
            self.writer.wake.set()


class Writer(threading.Thread):
    """Writes what is there, now and then, or when it is woken."""

    def __init__(self) -> None:
        super().__init__(name="edgeprofile-log", daemon=True)
        self.wake = threading.Event()
        self._stopping = False
        self._said, self._say_at = LINES.dropped, 0.0

    def run(self) -> None:
        """Until `stop`, and then once more."""
        while not self._stopping:
            self.wake.wait(WRITE_INTERVAL_S)
            self.wake.clear()
            LINES.write(STDERR)
            self._say_drops(time.monotonic())
        LINES.write(STDERR)

    def _say_drops(self, now: float) -> None:
        dropped = LINES.dropped - self._said
        if dropped and now >= self._say_at:
            self._said, self._say_at = LINES.dropped, now + SAID_INTERVAL_S
            log.warning("%d log lines were dropped: standard error does not take them as fast", dropped)

    def stop(self) -> None:
        """Ends it once all is written, but does not wait for a reader that does not read."""
        self._stopping = True
        self.wake.set()
        self.join(STOP_SECONDS_MAX)


LINES = Lines(HELD_BYTES_MAX)


@contextlib.contextmanager
def writing(shared: SharedMap) -> Iterator[None]:
    """In a process that must not wait for whoever reads standard error: the thread that does so for it."""
    LINES.count_drops(shared, Counter.LOG_LINES_DROPPED)
    Handler.writer = writer = Writer()
    writer.start()
    try:
        yield
    finally:
        writer.stop()
        # One that still waits for a reader is left with what comes after: that is not waited for either.
        if not writer.is_alive():
            Handler.writer = None


def _forget() -> None:
    """In a process that was forked: the thread is its parent's, and so are the lines that are not written yet."""
    Handler.writer = None
    LINES.reset()


os.register_at_fork(after_in_child=_forget)


def config(settings: Log) -> dict[str, Any]:
    """What `logging.config` makes our logging of, for our processes and for Granian's."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"entry": {"()": Formatter, "shape": settings.format}},
        "handlers": {"stderr": {"()": Handler, "formatter": "entry"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "edgeprofile": {"level": "INFO"},
            # Its access logs would cost more than a lookup; its own lines are of its workers' lives.
            "_granian": {"level": "WARNING"},
        },
    }


def configure(settings: Log) -> None:
    """Has this process log by these settings from now on."""
    logging.config.dictConfig(config(settings))


def request_log(settings: Log, surface: str) -> RequestLog:
    """What makes the lines of a surface's requests, in this process."""

    def pieces(level: str) -> tuple[bytes, ...]:
        filled = {"upper": level.upper(), "lower": level, "pid": os.getpid(), "surface": surface}
        return tuple(REQUEST[settings.format].format(**filled).encode().split(b"\0"))

    return RequestLog(LINES, FROM_STATUS[settings.requests], pieces("info"), pieces("error"))
