"""What people and programs are told of the state of things: progress, outcomes, snapshots, keys."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgeprofile import snapshot
from edgeprofile.errors import EdgeprofileError, NoSnapshot
from edgeprofile.keys import Key
from edgeprofile.snapshot import Outcome

LOG_INTERVAL_S = 10.0
Report = Callable[[str, float, float], None]


@contextlib.contextmanager
def progress(stream: TextIO) -> Iterator[Report]:
    """A progress bar on a terminal; elsewhere a line a stage, and one every ten seconds within it."""
    if not stream.isatty():
        yield _lines(stream)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task("starting", total=None, counts="")
        began, running = time.monotonic(), ""

        def report(stage: str, done: float, total: float) -> None:
            nonlocal began, running
            if stage != running:
                began, running = time.monotonic(), stage
                bar.reset(task, total=total or None, description=stage, counts="")
            rate = done / max(time.monotonic() - began, 1e-3)
            # A total of 1 is a share: the bar says enough.
            of = f" of {total:,.0f}" if total else ""
            counts = f"{done:,.0f}{of}, {rate:,.0f}/s" if done and total != 1 else ""
            bar.update(task, completed=done, total=total or None, counts=counts)

        yield report


def _lines(stream: TextIO) -> Report:
    said, said_at = "", 0.0

    def report(stage: str, done: float, total: float) -> None:
        nonlocal said, said_at
        now = time.monotonic()
        if stage == said and now - said_at < LOG_INTERVAL_S:
            return
        said, said_at = stage, now
        print(f"stage={stage!r} done={done:.6g} total={total:.6g}", file=stream, flush=True)

    return report


def outcome_line(workspace: str, outcome: Outcome) -> str:
    """One line for a log: what a refresh did."""
    seconds = outcome.finished_at - outcome.started_at
    rate = (
        f", {(outcome.profiles + outcome.events) / max(seconds, 1e-3):,.0f} a second"
        if outcome.outcome == "published"
        else ""
    )
    rejected = f", {outcome.rejected:,} rows refused" if outcome.rejected else ""
    events = f" and {outcome.events:,} events" if outcome.events else ""
    return (
        f"{workspace}: {outcome.outcome}, {outcome.profiles:,} profiles{events} in {seconds:.1f} s{rate}{rejected} "
        f"(snapshot {outcome.snapshot})"
    )


def of_workspace(data_dir: Path, name: str) -> dict[str, object]:
    """The state of a workspace, as `status --json` prints it. Ages and times are in seconds."""
    home = snapshot.home(data_dir, name)
    found: dict[str, object] = {"workspace": name, "snapshot": None, "problem": None}
    try:
        manifest = snapshot.current_manifest(home)
        found |= {
            "snapshot": manifest.name,
            "age": max(0.0, time.time() - manifest.finished_at),
            "profiles": manifest.profiles,
            "identifiers": manifest.identifiers,
            "rejected": manifest.rejected,
            "events": manifest.events,
            "events_rejected": manifest.events_rejected,
            "file_bytes": manifest.file_bytes,
            "live_profiles": 0,
        }
    except EdgeprofileError as error:
        found["problem"] = None if isinstance(error, NoSnapshot) else str(error)
    last = snapshot.last_outcome(home)
    found["last_refresh"] = None if last is None else msgspec.to_builtins(last)
    return found


def print_status(found: list[dict[str, object]]) -> None:
    """The same for people."""
    table = _table("workspace", "snapshot", last=("age", "profiles", "events", "last refresh"))
    for each in found:
        last = each["last_refresh"]
        ended = "never" if not isinstance(last, dict) else f"{last['outcome']} {_moment(last['finished_at'])}"
        if isinstance(last, dict) and last["message"]:
            ended += f": {last['message']}"
        served = str(each["problem"] or each["snapshot"] or "none yet: run edgeprofile load")
        age = f"{each['age']:,.0f} s" if "age" in each else ""
        counts = [f"{each[what]:,}" if what in each else "" for what in ("profiles", "events")]
        table.add_row(str(each["workspace"]), served, age, *counts, ended)
    _console().print(table)


def print_snapshots(home: Path) -> None:
    """The published snapshots, the current one marked. Raises NoSnapshot where there is none."""
    current = snapshot.current(home)
    table = _table("", "snapshot", last=("finished", "profiles", "events", "size", "refused rows"))
    for manifest in snapshot.manifests(home):
        table.add_row(
            "→" if manifest.name == current else "",
            manifest.name,
            _moment(manifest.finished_at),
            f"{manifest.profiles:,}",
            f"{manifest.events:,}",
            f"{manifest.file_bytes / 1e6:,.1f} MB",
            f"{manifest.refused:,}",
        )
    _console().print(table)


def key_facts(key: Key) -> dict[str, object]:
    """All that may be known of a key."""
    state = "revoked" if key.revoked_at else "usable" if key.usable(time.time()) else "expired"
    return {name: getattr(key, name) for name in key.__struct_fields__ if name != "hash"} | {"state": state}


def print_keys(keys: list[Key]) -> None:
    """The keys as a table."""
    table = _table("public id", last=("workspace", "name", "scopes", "state", "created", "expires", "rate", "burst"))
    for key in keys:
        facts = key_facts(key)
        expires = "never" if key.expires_at is None else _moment(key.expires_at)
        limits = ["default" if limit is None else f"{limit:g}/s" for limit in (key.rate, key.burst_rate)]
        scopes = " ".join(key.scopes)
        table.add_row(
            key.public_id,
            key.workspace,
            key.name,
            scopes,
            str(facts["state"]),
            _moment(key.created_at),
            expires,
            *limits,
        )
    _console().print(table)


def _table(*whole: str, last: tuple[str, ...]) -> Table:
    """A table whose first columns are never cut, because people copy what stands in them."""
    table = Table()
    for name in whole:
        table.add_column(name, no_wrap=True, overflow="ignore")
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _moment(seconds: object) -> str:
    return f"{dt.datetime.fromtimestamp(float(str(seconds)), dt.UTC):%Y-%m-%d %H:%M:%S}"


def _console() -> Console:
    # Off a terminal, as wide as its content: no name may be cut in a log.
    # What stands in brackets is text, never markup: a key's name and a message may hold any.
    return Console(width=None if sys.stdout.isatty() else 250, markup=False, emoji=False, highlight=False)
