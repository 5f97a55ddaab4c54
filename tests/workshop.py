"""A folder with settings and a model, in which a test loads, reads and runs commands as an operator would."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgeprofile import history, reader, settings, snapshot
from edgeprofile.loader.following import follow
from edgeprofile.loader.refresh import refresh
from edgeprofile.record import Record

Case = TypeVar("Case")
Result = TypeVar("Result")
NAME = "shop"
COMMAND = [sys.executable, "-m", "edgeprofile"]
WAIT_SECONDS_MAX = 60.0


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines of errors, without progress and hints."""
        return [line for line in self.err.splitlines() if not line.startswith(("stage=", "  hint: "))]


class Workshop:
    """One workspace called "shop" with its settings and data in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "var" / NAME

    @property
    def snapshots(self) -> Path:
        return self.home / snapshot.SNAPSHOTS

    def model(self, sql: str, /, *, url: str = "duckdb://", **keys: Any) -> Workshop:
        """Writes the model and the settings. `keys` are those of `profiles`, `source`, the workspace or the loader."""
        (self.folder / "model.sql").write_text(sql, encoding="utf-8")
        loader: dict[str, Any] = {"threads": 2}
        profiles: dict[str, Any] = {"sql": "model.sql", "id": "id"}
        source: dict[str, Any] = {"url": url}
        workspace: dict[str, Any] = {}
        tables = ((settings.Profiles, profiles), (settings.Source, source), (settings.Workspace, workspace))
        for key, value in keys.items():
            next((table for kind, table in tables if key in kind.__struct_fields__), loader)[key] = value
        written = {
            "loader": loader,
            f"workspaces.{NAME}": workspace,
            f"workspaces.{NAME}.source": source,
            f"workspaces.{NAME}.profiles": profiles,
        }
        text = 'data_dir = "var"\n'
        for table, values in written.items():
            text += f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
        (self.folder / settings.FILE).write_text(text, encoding="utf-8")
        return self

    def load(self, *, force: bool = False, progress: Callable[[str, float, float], None] | None = None) -> str:
        """Refreshes in this process; returns the outcome."""
        outcome = refresh(self.settings(), NAME, force=force, progress=progress or (lambda *_: None))
        return outcome.outcome

    def settings(self) -> settings.Settings:
        return settings.load(self.folder / settings.FILE, {})

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Ended:
        """Runs a command in the folder, to its end."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            capture_output=True,
            env=environment() | (env or {}),
            timeout=WAIT_SECONDS_MAX,
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def draw(self, *arguments: str) -> Ended:
        """As `run`, with a terminal for errors: `err` is what was drawn there."""
        screen, terminal = pty.openpty()
        env = environment() | {"TERM": "xterm-256color", "COLUMNS": "100"}
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=terminal
        )
        os.close(terminal)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while piece := os.read(screen, 65_536):
                drawn += piece
        os.close(screen)
        out, _ = process.communicate(timeout=WAIT_SECONDS_MAX)
        return Ended(process.returncode, out.decode(), drawn.decode())

    def current(self) -> str | None:
        """What CURRENT holds, without its line end; None where there is no such file."""
        with contextlib.suppress(FileNotFoundError):
            return (self.home / snapshot.CURRENT).read_text().strip()
        return None

    def current_folder(self) -> Path:
        return snapshot.folder(self.home, snapshot.current(self.home))

    def manifest(self) -> snapshot.Manifest:
        return snapshot.read_manifest(self.current_folder())

    @contextlib.contextmanager
    def reader(self) -> Iterator[reader.Reader]:
        """The current snapshot."""
        opened = reader.open_current(self.home)
        try:
            yield opened
        finally:
            opened.close()

    def bodies(self) -> dict[str, bytes]:
        """Every profile's answer, in the order of the file."""
        with self.reader() as opened:
            return {primary: body(opened, primary) for primary in opened.ids()}

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Every profile's answer, parsed."""
        return {primary: json.loads(text) for primary, text in self.bodies().items()}

    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The events of every profile that has any, parsed, as the plain reader finds them."""
        with self.reader() as opened:
            return {primary: events(opened, primary) for primary in opened.ids() if opened.directory(primary)}

    def found(self, namespace: str, value: str) -> list[str]:
        """The primary ids that an identifier leads to."""
        with self.reader() as opened:
            return opened.primaries(namespace, value)

    def rejects(self) -> list[dict[str, Any]]:
        """The refused rows that are listed beside the current snapshot."""
        lines = (self.current_folder() / snapshot.REJECTS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def leftovers(self) -> list[str]:
        """What a build left behind that no snapshot is."""
        found = [*self.snapshots.glob(snapshot.BUILDING + "*"), *self.home.glob("*.new"), *self.home.glob(".scratch")]
        return sorted(path.name for path in found)


def roll_back(home: Path) -> snapshot.Manifest:
    """Makes the snapshot before the current one current, as an operator does."""
    return snapshot.rollback(home, partial(follow, home))


def environment() -> dict[str, str]:
    """This process's, without settings of edgeprofile's that would reach the command."""
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGEPROFILE_")}


def side_by_side(run: Callable[[Case], Result], cases: Iterable[Case]) -> list[Result]:
    """Runs a function on each case, on two at a time, because each waits for a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, cases))


def toml(value: object) -> str:
    """A value as TOML, in which text, numbers, booleans and lists look as they do in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inside)}" for key, inside in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def values(*rows: str, columns: str) -> str:
    """A model that yields these rows, each the SQL of its values: `values("1, 'a'", columns="id, name")`."""
    return f"SELECT * FROM (VALUES {', '.join(f'({row})' for row in rows)}) AS made({columns})"


def body(opened: reader.Reader, primary: str) -> bytes:
    """The whole answer of a profile, its record checked."""
    found = opened.record(primary)
    assert found is not None
    return Record(primary, bytes(found)).body


def events(opened: reader.Reader, primary: str) -> list[dict[str, Any]]:
    """A profile's events, newest first, their records checked."""

    def content_of(block: history.Block) -> bytes:
        return bytes(opened.event_segments[block.segment][block.offset : block.offset + block.length])

    found, more = history.read(primary, bytes(opened.directory(primary) or b""), content_of)
    assert more is None
    return [json.loads(text) for text in found]


def without_time(answer: bytes) -> bytes:
    """An answer without what the time of the refresh put into it."""
    return re.sub(rb',"_updated_at":"[^"]*"}$', b"}", answer)


def until(true: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    """Waits until something is true. Fails after a minute, or when the process that should bring it about ends."""
    give_up = time.monotonic() + WAIT_SECONDS_MAX
    while not true():
        assert time.monotonic() < give_up, "waited in vain"
        assert process is None or process.poll() is None or true(), "the process ended early"
        time.sleep(0.01)


def stop(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
    """Ends a process that a test started, and gives its status."""
    process.send_signal(number)
    return process.wait(timeout=WAIT_SECONDS_MAX)
