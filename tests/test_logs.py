"""Entries of the log: one for what happened, in one piece, whatever text is in it and whoever else writes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service import until

from edgeprofile import logs
from edgeprofile._exchange import log_fault
from edgeprofile._limiter import SharedMap
from edgeprofile._log_lines import ENTRY_BYTES_MAX, Lines, RequestLog
from edgeprofile._metrics import Recorder
from edgeprofile.metrics import Counter, Surface, slots
from edgeprofile.settings import Log

Shape = Literal["text", "json"]
ENTRY = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([A-Z]+) \[(\d+)\] (.*)\n")
# What JSON in UTF-8 cannot hold, too: halves of surrogate pairs, such as stand for bytes that were no text.
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=300)


def entry_of(shape: Shape, message: str, *args: object, **more: Any) -> str:
    record = logging.LogRecord("edgeprofile", logging.WARNING, "x.py", 1, message, args, None)
    record.__dict__.update(more)
    return logs.Formatter(shape).format(record)


def failure(text: str) -> Any:
    """What logging is given of an error with this text."""
    try:
        raise ValueError(text)
    except ValueError as error:
        return type(error), error, error.__traceback__


# --- their shapes --------------------------------------------------------------------------------------------------


def test_an_entry_of_json_says_what_when_where_and_how_bad() -> None:
    entry = json.loads(entry_of("json", "worker %d is gone", 7, created=1_750_000_000.25))
    assert entry == {
        "time": "2025-06-15T15:06:40.250000Z",
        "level": "warning",
        "pid": os.getpid(),
        "message": "worker 7 is gone",
    }


def test_an_entry_of_text_says_the_same() -> None:
    entry = entry_of("text", "worker %d is gone", 7, created=1_750_000_000.25)
    assert entry == f"2025-06-15T15:06:40.250000Z WARNING [{os.getpid()}] worker 7 is gone\n"


@pytest.mark.parametrize("shape", ["text", "json"])
def test_who_else_logs_is_named(shape: Shape) -> None:
    assert "asyncio" in entry_of(shape, "slow", name="asyncio")


@given(message=ANY_TEXT, error=ANY_TEXT)
def test_whatever_the_text_an_entry_of_json_is_one_line_that_can_be_read(message: str, error: str) -> None:
    line = entry_of("json", "%s", message, exc_info=failure(error))
    assert line.endswith("}\n")
    assert len(line.encode().splitlines()) == 1
    entry = json.loads(line.encode())
    shown = message.encode("utf-8", "backslashreplace").decode()
    assert entry["message"] == shown
    assert "ValueError" in entry["traceback"]


@given(message=ANY_TEXT, error=ANY_TEXT)
def test_whatever_the_text_an_entry_of_text_begins_one_line_and_the_others_are_set_in(message: str, error: str) -> None:
    entry = entry_of("text", "%s", message, exc_info=failure(error)).encode().decode()
    first, *others = entry.splitlines(keepends=True)
    assert ENTRY.fullmatch(first)
    assert others
    assert all(line.startswith("    ") for line in others), others
    assert not re.search("[\x00-\x1f\x7f-\x9f]", "".join(line[:-1] for line in others))


def test_a_message_cannot_pass_for_an_entry_of_its_own() -> None:
    forged = "x\n2025-06-15T15:06:40.250000Z ERROR [1] all is lost\r\x1b[2J\x85\u2028y"
    line = entry_of("text", "%s", forged)
    assert line.count("\n") == 1
    assert line.endswith(r"] x\n2025-06-15T15:06:40.250000Z ERROR [1] all is lost\r\x1b[2J\x85\u2028y" + "\n")


@pytest.mark.parametrize("text", ["x" * 9_000, "ä\n" * 4_500, "\x00" * 9_000, "\udc80" * 9_000])
@pytest.mark.parametrize("shape", ["text", "json"])
def test_what_is_too_long_is_cut_so_that_it_stays_in_one_piece(shape: Shape, text: str) -> None:
    line = entry_of(shape, "begins %s", text)
    assert ENTRY_BYTES_MAX - 64 < len(line.encode()) <= ENTRY_BYTES_MAX
    assert "begins" in line
    line = entry_of(shape, "message", exc_info=failure(text + " ends"))
    assert len(line.encode()) <= ENTRY_BYTES_MAX
    assert "message" in line
    assert "ends" in line[-10:]
    assert "…" in line
    line = entry_of(shape, text, exc_info=failure(text))
    assert len(line.encode()) <= ENTRY_BYTES_MAX


@pytest.mark.parametrize("shape", ["text", "json"])
def test_a_fault_says_where_it_was_and_not_what_its_error_says(shape: Shape) -> None:
    made = logging.LogRecord("", 0, "", 0, "", (), None)

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal made
            made = record

    handler = Kept()
    logging.getLogger("edgeprofile").addHandler(handler)
    try:
        log_fault(b"look-me-up", failure("a secret")[1])
    finally:
        logging.getLogger("edgeprofile").removeHandler(handler)
    line = logs.Formatter(shape).format(made)
    assert "request look-me-up failed: ValueError" in line
    assert "raise ValueError(text)" in line
    assert "secret" not in line
    if shape == "json":
        assert json.loads(line)["request_id"] == "look-me-up"


# --- requests ------------------------------------------------------------------------------------------------------


class Requests:
    """Lines of requests, as they come out of a pipe."""

    def __init__(self, folder: Path, settings: Log) -> None:
        made = logs.request_log(settings, "native")
        self.recorder = Recorder(SharedMap(folder / "shared.map"), *slots(Surface.NATIVE), log=made)
        self._there, self._here = os.pipe()

    def lines(self) -> list[str]:
        logs.LINES.write(self._here)
        return os.read(self._there, 100_000).decode().splitlines(keepends=True)

    def close(self) -> None:
        os.close(self._there)
        os.close(self._here)


@pytest.fixture(params=["text", "json"])
def requests(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Requests]:
    made = Requests(tmp_path, Log(format=request.param, requests="all"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("chosen", "logged"), [("none", set[int]()), ("failed", {500, 503, 599}), ("all", {200, 304, 404, 500, 503, 599})]
)
def test_requests_are_logged_by_their_status(
    chosen: Literal["none", "failed", "all"], logged: set[int], tmp_path: Path
) -> None:
    made = Requests(tmp_path, Log(requests=chosen))
    assert {status for status in (200, 304, 404, 500, 503, 599) if made.recorder.logs(status)} == logged
    made.close()


def test_a_recorder_without_a_log_logs_nothing(tmp_path: Path) -> None:
    recorder = Recorder(SharedMap(tmp_path / "shared.map"), *slots(Surface.NATIVE))
    assert not recorder.logs(599)
    recorder.note(599, 0, "GET", b"a", None)


def test_a_request_has_one_line_with_what_is_known_of_it(requests: Requests) -> None:
    requests.recorder.note(200, 0, "GET", b"a", "shop")
    requests.recorder.note(503, 0, "POST", b"b" * 128, None)
    good, bad = requests.lines()
    if good.startswith("{"):
        entries = [json.loads(good), json.loads(bad)]
        for entry in entries:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", entry.pop("time"))
            assert (entry.pop("pid"), entry.pop("message"), entry.pop("surface")) == (os.getpid(), "request", "native")
            assert entry.pop("duration_us") > 0
        assert entries == [
            {"level": "info", "request_id": "a", "method": "GET", "status": 200, "workspace": "shop"},
            {"level": "error", "request_id": "b" * 128, "method": "POST", "status": 503},
        ]
    else:
        for line, level, ends in (
            (good, "INFO", r"request_id=a surface=native method=GET status=200 duration_us=\d+ workspace=shop"),
            (bad, "ERROR", r"request_id=b{128} surface=native method=POST status=503 duration_us=\d+"),
        ):
            entry = ENTRY.fullmatch(line)
            assert entry is not None, line
            assert entry[2] == level
            assert re.fullmatch(f"request {ends}", entry[4])


@pytest.mark.parametrize("method", ["my-own-id", 'GET" ', "GET\n", "get", "", "\udc80", "G" * 10_000])
def test_a_method_that_is_none_is_not_shown(requests: Requests, method: str) -> None:
    requests.recorder.note(405, 0, method, b"a", "shop")
    (line,) = requests.lines()
    assert "other" in line
    assert not method.strip() or method not in line


def test_the_time_of_a_request_is_that_of_other_entries(requests: Requests) -> None:
    before = entry_of("text", "x").split()[0]
    requests.recorder.note(200, 0, "GET", b"a", None)
    time = re.search(r"20[-:.\dTZ]{25}", requests.lines()[0])
    assert time is not None
    assert before <= time[0] <= entry_of("text", "x").split()[0]


@pytest.mark.parametrize("pieces", [(b"",) * 7, (b"",) * 9, (b"x" * 129, *(b"",) * 7)])
def test_a_line_of_other_pieces_is_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="eight pieces"):
        RequestLog(Lines(100), 0, pieces, (b"",) * 8)


# --- on their way out ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_dropped_and_counted_and_what_is_there_stays(tmp_path: Path) -> None:
    shared = SharedMap(tmp_path / "shared.map")
    lines = Lines(20)
    lines.count_drops(shared, Counter.LOG_LINES_DROPPED)
    for entry in (b"first\n", b"the second one\n", b"a third\n", b"1234567\n", b"more\n"):
        lines.append(entry)
    assert (lines.dropped, shared.counter(Counter.LOG_LINES_DROPPED)) == (2, 2)
    there, here = os.pipe()
    lines.write(here)
    lines.append(b"later\n")
    lines.write(here)
    os.close(here)
    with open(there, "rb") as pipe:
        assert pipe.read() == b"first\na third\nmore\nlater\n"


@pytest.mark.parametrize("how", ["no reader", "no file", "full disk"])
def test_what_cannot_be_written_is_dropped_and_counted(how: str) -> None:
    lines = Lines(10_000)
    lines.append(b"one\n    set in\n")
    lines.append(b"two\n")
    if how == "full disk":
        file = os.open("/dev/full", os.O_WRONLY)
    else:
        there, file = os.pipe()
        os.close(there)
    if how == "no file":
        os.close(file)
    lines.write(file)
    assert lines.dropped == 2
    lines.write(file)
    assert lines.dropped == 2


def test_entries_of_processes_that_share_a_full_pipe_do_not_mix() -> None:
    there, here = os.pipe()
    fcntl.fcntl(here, fcntl.F_SETPIPE_SZ, 4096)
    writers = []
    for name in (b"a", b"b", b"c"):
        pid = os.fork()
        if pid == 0:
            lines = Lines(1_000_000)
            for number in range(900):
                lines.append(name * (1 + number * 7 % 300) + b"\n")
                if number % 3 == 0:  # one of several lines
                    lines.append(b"begins " + name + b"\n" + b"    %s\n" % (name * 50) * 3)
            lines.write(here)
            os._exit(0)
        writers.append(pid)
    os.close(here)
    with open(there, "rb") as pipe:
        content = pipe.read()
    for pid in writers:
        os.waitpid(pid, 0)
    whole = re.compile(rb"(?:([abc])\1*\n|begins ([abc])\n(?:    \2{50}\n){3})*")
    assert whole.fullmatch(content)
    assert content.count(b"begins") == 900
    assert content.count(b"\n") == 3 * (900 + 300 * 4)


def test_a_file_that_does_not_block_is_waited_for() -> None:
    there, here = os.pipe()
    os.set_blocking(here, False)
    lines = Lines(1_000_000)
    for number in range(20_000):
        lines.append(b"line %d\n" % number)
    writing = threading.Thread(target=lines.write, args=(here,))
    writing.start()
    content = b""
    while not content.endswith(b"line 19999\n"):
        content += os.read(there, 1_000)
    writing.join()
    assert content.splitlines() == [b"line %d" % number for number in range(20_000)]
    os.close(there)
    os.close(here)


def test_who_appends_goes_on_while_another_thread_waits_for_the_reader() -> None:
    there, here = os.pipe()
    lines = Lines(100_000)
    entry = b"x" * 999 + b"\n"
    for _ in range(100):
        lines.append(entry)
    writing = threading.Thread(target=lines.write, args=(here,))
    writing.start()
    until(lambda: select.select([there], [], [], 0)[0], "it has begun to write")
    for _ in range(101):
        lines.append(entry)
    assert lines.dropped == 1
    lines.write(here)  # which the other thread does
    os.close(there)
    writing.join()
    os.close(here)
    assert lines.dropped > 100


def test_a_forked_process_leaves_its_parents_lines_to_it() -> None:
    there, here = os.pipe()
    logs.LINES.append(b"the parent's\n")
    pid = os.fork()
    if pid == 0:
        logs.LINES.append(b"the child's\n")
        logs.LINES.write(here)
        os._exit(0)
    os.waitpid(pid, 0)
    logs.LINES.write(here)
    os.close(here)
    with open(there, "rb") as pipe:
        assert pipe.read() == b"the child's\nthe parent's\n"
