"""PostgreSQL tables under constant change, refreshed in full and by deltas, their server restarted: `make churn`.

    python tests/churn.py [--minutes 10] [--refresh 3] [--seed 1]

Of two workspaces, one is refreshed by deltas, and its rows are marked as deleted; the other is refreshed in full each
time, and its rows are deleted. Writers change rows all the time, by transactions of which some last for seconds, and
some are rolled back. Meanwhile the server is once restarted and once killed. When they have stopped, and the next
refreshes have ended, every profile that is served has to be the table's row, in all its fields, and no other is found.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from postgres import Postgres
from service import Connection, Service, many, request, until

from edgeprofile import outcomes, settings

MARKED, REMOVED = "marked", "removed"
IDS, ROWS = 20_000, 15_000
WRITERS, CALLERS, WORKERS = 4, 2, 2
# The longest transaction is within the overlap, and the warehouse is down for longer than the cadence.
LONG_S, OVERLAP_S, DOWN_S = 3.0, 8, 6.0
SAMPLES_INTERVAL_S = 0.2
AT_ONCE = 100
# For the note of a refresh that has ended to be written, and for the metrics to be asked and answered.
SLACK_S = 0.5
FIELDS = "id, version, email, balance, tags, notes, seen, vip"
SETUP = f"""
CREATE SEQUENCE versions;
CREATE TABLE {MARKED} (id text PRIMARY KEY, version bigint, email text, balance numeric(12, 2), tags text[],
    notes jsonb, seen timestamptz, vip boolean, gone boolean NOT NULL DEFAULT false, updated_at timestamptz);
CREATE TABLE {REMOVED} (LIKE {MARKED} INCLUDING ALL);
CREATE FUNCTION renew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('versions');
    NEW.email := NEW.id || '.' || NEW.version || '@example.com';
    NEW.balance := random() * 1000000;
    NEW.tags := CASE WHEN random() < 0.8 THEN ARRAY['ä' || NEW.version % 7, NULL, '"'] END;
    NEW.notes := jsonb_build_object('version', NEW.version, 'text', repeat('é', (random() * 200)::int));
    NEW.seen := clock_timestamp();
    NEW.vip := random() < 0.5;
    NEW.updated_at := now();
    RETURN NEW;
END $$;
CREATE TRIGGER renew BEFORE INSERT OR UPDATE ON {MARKED} FOR EACH ROW EXECUTE FUNCTION renew();
CREATE TRIGGER renew BEFORE INSERT OR UPDATE ON {REMOVED} FOR EACH ROW EXECUTE FUNCTION renew();
INSERT INTO {MARKED} (id) SELECT 'p' || n FROM generate_series(1, {ROWS}) AS n;
INSERT INTO {REMOVED} (id) SELECT 'p' || n FROM generate_series(1, {ROWS}) AS n;
"""
SETTINGS = """
data_dir = "state"
[server]
port = {service.port}
admin_port = {service.admin_port}
workers = {service.workers_wanted}
ready_delay_seconds = 0
[limits]
rate = 1_000_000
burst_rate = 1_000_000
[loader]
threads = 1
memory_limit = "300MB"
[workspaces.marked]
refresh = "{refresh_s}s"
full_refresh = 5
overlap = "{overlap_s}s"
source.url = "{url}"
[workspaces.marked.profiles]
sql = "SELECT {fields}, gone, updated_at FROM marked"
id = "id"
identifiers = ["email"]
audiences = ["vip"]
updated_at = "updated_at"
deleted = "gone"
[workspaces.removed]
refresh = "{refresh_s}s"
source.url = "{url}"
[workspaces.removed.profiles]
sql = "SELECT {fields} FROM removed"
id = "id"
identifiers = ["email"]
audiences = ["vip"]
"""
Profile = dict[str, Any]


class Warehouse:
    """The server with both tables, and when it was down."""

    def __init__(self) -> None:
        self.server = Postgres()
        self.database = self.server.database(SETUP)
        self.down: list[tuple[float, float]] = []

    def ask(self, sql: str) -> str:
        return self.server.ask(sql, self.database)

    def restart(self, number: signal.Signals, down_s: float) -> None:
        """Ends it by a signal, and starts it again after a while."""
        began = time.monotonic()
        self.server.stop(number)
        time.sleep(down_s)
        self.server.start()
        self.down.append((began, time.monotonic()))

    def profiles(self, table: str) -> dict[str, Profile]:
        """What has to be served of a table, by id."""
        rows = self.ask(f"SELECT row_to_json({table}) FROM {table} WHERE NOT gone").splitlines()
        return {row["id"]: row for row in map(json.loads, rows)}


class Writer(threading.Thread):
    """Changes rows of both tables, a transaction after the other."""

    def __init__(self, warehouse: Warehouse, number: int, seed: int, stopping: threading.Event) -> None:
        super().__init__(name=f"writer {number}")
        self._warehouse = warehouse
        self._number = number
        self._chance = random.Random(seed * WRITERS + number)
        self._stopping = stopping
        self.ended = Counter[str]()

    def run(self) -> None:
        """Until it is stopped. What a server that ends breaks off is tried no second time."""
        while not self._stopping.wait(self._chance.random() * 0.2):
            committed = self._chance.random() < 0.9
            try:
                self._warehouse.ask("".join(self._transaction(end="COMMIT" if committed else "ROLLBACK")))
            except subprocess.CalledProcessError:
                self.ended["broken off"] += 1
                self._stopping.wait(1)
            else:
                self.ended["committed" if committed else "rolled back"] += 1

    def _transaction(self, end: str) -> Iterator[str]:
        table = self._chance.choice((MARKED, REMOVED))
        yield "BEGIN;"
        for _ in range(self._chance.randrange(1, 4)):
            yield self._change(table)
        if self._chance.random() < 0.1:
            yield f"SELECT pg_sleep({self._chance.uniform(0.5, LONG_S - 0.5):.2f}); {self._change(table)}"
        yield f"{end};"

    def _change(self, table: str) -> str:
        ids = ", ".join(f"'p{self._chance.randint(1, IDS)}'" for _ in range(self._chance.randrange(1, 30)))
        # Nobody waits for another's rows.
        rows = f"id IN (SELECT id FROM {table} WHERE id IN ({ids}) ORDER BY id FOR UPDATE SKIP LOCKED)"
        match self._chance.randrange(4), table:
            case 0, _:
                own = range(self._number, IDS, WRITERS)
                ids = ", ".join(f"('p{1 + self._chance.choice(own)}')" for _ in range(10))
                return f"INSERT INTO {table} (id) VALUES {ids} ON CONFLICT DO NOTHING;"
            case 1, "marked":
                return f"UPDATE {table} SET gone = random() < 0.5 WHERE {rows};"
            case 1, _:
                return f"DELETE FROM {table} WHERE {rows};"
            case _:
                return f"UPDATE {table} SET id = id WHERE {rows};"


class Caller(threading.Thread):
    """Looks profiles up over one connection, where a profile never becomes older than it was."""

    def __init__(self, service: Service, keys: dict[str, str], seed: int, stopping: threading.Event) -> None:
        super().__init__(name=f"caller {seed}")
        self._service = service
        self._keys = keys
        self._chance = random.Random(seed)
        self._stopping = stopping
        self.statuses = Counter[int]()
        self.failures: list[str] = []

    def run(self) -> None:
        """Until it is stopped."""
        seen: dict[tuple[str, str], int] = {}
        with self._service.connect() as connection:
            while not self._stopping.wait(0.002):
                table, primary = self._chance.choice((MARKED, REMOVED)), f"p{self._chance.randint(1, IDS)}"
                try:
                    answer = connection.ask(request(f"/v1/profiles/id/{primary}", self._keys[table]))
                except OSError as error:
                    self.failures.append(f"no answer: {error}")
                    return
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    version = answer.json()["version"]
                    if version < seen.setdefault((table, primary), version):
                        self.failures.append(f"{table} {primary} went back from {seen[table, primary]} to {version}")
                    seen[table, primary] = version
                elif answer.status != 404:
                    self.failures.append(f"status {answer.status}")


class Sample(NamedTuple):
    """What the metrics said at a moment: how old what is served was, and how old it may become, by workspace."""

    at: float
    staleness_s: dict[str, float]
    staleness_max_s: dict[str, float]


class Watch(threading.Thread):
    """Asks for the metrics all the time."""

    def __init__(self, service: Service, stopping: threading.Event) -> None:
        super().__init__(name="watch")
        self._service = service
        self._stopping = stopping
        self.samples: list[Sample] = []

    def run(self) -> None:
        """Until it is stopped."""
        while not self._stopping.wait(SAMPLES_INTERVAL_S):
            text = metrics(self._service)
            named = (by_workspace(text, f"edgeprofile_staleness{which}_seconds") for which in ("", "_max"))
            self.samples.append(Sample(time.monotonic(), *named))


def metrics(service: Service) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", service.admin_port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def by_workspace(text: str, name: str) -> dict[str, float]:
    found = re.findall(rf'^{name}{{workspace="(\w+)"}} (\S+)$', text, re.MULTILINE)
    return {workspace: float(value) for workspace, value in found}


class Found(NamedTuple):
    """What a run has shown: facts in words, what was served wrongly or not at all, and what was served too late."""

    facts: list[str]
    wrong: list[str]
    late: list[str]


def churn(folder: Path, seconds: float, refresh_s: int, seed: int) -> Found:
    """The whole run, in `folder`."""
    with ExitStack() as stack:
        warehouse = Warehouse()
        stack.callback(warehouse.server.remove)
        service = Service(folder, workers=WORKERS, with_admin=True)
        url = warehouse.server.url(warehouse.database)
        service.file.write_text(
            SETTINGS.format(service=service, refresh_s=refresh_s, overlap_s=OVERLAP_S, url=url, fields=FIELDS)
        )
        service.settings = settings.load(service.file, {})
        for name in (MARKED, REMOVED):
            service.load(name)
        stack.callback(service.stop)
        service.watch()
        service.start()
        keys = {name: service.key(name) for name in (MARKED, REMOVED)}
        return _run(warehouse, service, keys, seconds, seed)


def _run(warehouse: Warehouse, service: Service, keys: dict[str, str], seconds: float, seed: int) -> Found:
    written, watched = threading.Event(), threading.Event()
    writers = [Writer(warehouse, number, seed, written) for number in range(WRITERS)]
    callers = [Caller(service, keys, seed + number, watched) for number in range(CALLERS)]
    watch = Watch(service, watched)
    threads = [*writers, *callers, watch]
    for thread in threads:
        thread.start()
    try:
        for number, down_s in ((signal.SIGINT, 0.0), (signal.SIGQUIT, DOWN_S)):
            time.sleep((seconds - DOWN_S) / 3)
            warehouse.restart(number, down_s)
        time.sleep((seconds - DOWN_S) / 3)
        written.set()
        for thread in writers:
            thread.join()
        wrong = _differences(warehouse, service, keys, time.time())
    finally:
        written.set()
        watched.set()
        for thread in threads:
            thread.join()
    committed = sum((each.ended for each in writers), Counter[str]())
    asked = sum((each.statuses for each in callers), Counter[int]())
    failures = [failure for each in callers for failure in each.failures]
    facts = [f"transactions: {_counts(committed)}", f"lookups: {_counts(asked)}; {len(failures)} failed"]
    late = []
    for name in (MARKED, REMOVED):
        facts.append(f"{name}, refreshes: {_counts(Counter(outcomes.read(service.home(name)).counts))}")
        fact, problems = _staleness(warehouse, watch.samples, name)
        facts.append(f"{name}, {fact}")
        late += [f"{name}, {problem}" for problem in problems]
    return Found(facts, wrong + failures, late)


def _counts(found: Counter[Any]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in found.most_common())


def _staleness(warehouse: Warehouse, samples: list[Sample], name: str) -> tuple[str, list[str]]:
    """The most that it was while the warehouse was up, against what it may be; and how soon a restart was over."""
    limit_s = max(each.staleness_max_s[name] for each in samples)
    # What is served is of before the server's end until a refresh succeeds that began after its start.
    fresh_at = [
        next(each.at for each in samples if each.staleness_s[name] < each.at - started) for _, started in warehouse.down
    ]
    disturbed = [(ended, fresh) for (ended, _), fresh in zip(warehouse.down, fresh_at, strict=True)]
    calm = [each for each in samples if not any(ended <= each.at <= fresh for ended, fresh in disturbed)]
    most_s = max(each.staleness_s[name] for each in calm)
    back_s = max(fresh - started for (_, started), fresh in zip(warehouse.down, fresh_at, strict=True))
    problems = [
        f"{what}: {seconds:.2f} s, where {limit_s:.2f} s are the most"
        for what, seconds in (("staleness", most_s), ("from the server's start to a refresh", back_s))
        if seconds > limit_s + SLACK_S
    ]
    return (
        f"staleness: at most {most_s:.2f} s of {limit_s:.2f} s; {back_s:.2f} s after a restart, fresh again",
        problems,
    )


# --- the end -------------------------------------------------------------------------------------------------------


def _differences(warehouse: Warehouse, service: Service, keys: dict[str, str], stopped_at: float) -> list[str]:
    """What is served otherwise than it should be after the next refresh of each, and after the next full one."""
    problems = []
    for kinds in (outcomes.SUCCESSES, ("published", "unchanged")):
        for name in (MARKED, REMOVED):
            until(lambda: _is_over(service.home(name), kinds, stopped_at), f"a refresh of {name}", 120)  # noqa: B023
            expected = warehouse.profiles(name)
            # A worker takes a moment to follow a new snapshot.
            with suppress(AssertionError):
                until(lambda: not _wrong(service, keys[name], name, expected), "all are equal", 10)  # noqa: B023
            wrong = _wrong(service, keys[name], name, expected)
            problems += [f"{name}, after {_last(service, name)}: {len(wrong)} wrong: {wrong[:3]}"] if wrong else []
    return problems


def _is_over(home: Path, kinds: tuple[str, ...], began_after: float) -> bool:
    settled = outcomes.read(home).settled
    return settled is not None and settled.outcome in kinds and settled.started_at > began_after


def _last(service: Service, name: str) -> str:
    return outcomes.read(service.home(name)).last[-1].outcome


def _wrong(service: Service, key: str, name: str, expected: dict[str, Profile]) -> list[str]:
    """The ids that any worker serves wrongly, or that cannot be found by their email."""
    wrong = []
    for connection in service.connect_to_each():
        with connection:
            for first in range(1, IDS + 1, AT_ONCE):
                ids = [f"p{n}" for n in range(first, first + AT_ONCE)]
                served = _served(connection, key, [{"id": each} for each in ids])
                wrong += [id for id, found in zip(ids, served, strict=True) if not _is(name, found, expected.get(id))]
            for first in range(0, len(rows := list(expected.values())), AT_ONCE):
                asked = [{"namespace": "email", "value": row["email"]} for row in rows[first : first + AT_ONCE]]
                served = _served(connection, key, asked)
                pairs = zip(served, rows[first : first + AT_ONCE], strict=True)
                wrong += [row["id"] for found, row in pairs if not _is(name, found, row)]
    return wrong


def _served(connection: Connection, key: str, asked: list[dict[str, str]]) -> list[Profile | None]:
    found: list[Profile | None] = connection.ask(many({"profiles": asked}, key)).json()["profiles"]
    return found


def _is(name: str, found: Profile | None, row: Profile | None) -> bool:
    """Whether what is served is this row, or nothing where there is none."""
    if found is None or row is None:
        return found is row
    audiences = {"vip": row["vip"]}
    fields = {
        what: row[what] for what in ("id", "version", "email", "balance", "tags", "notes") if row[what] is not None
    }
    fields |= {"_audiences": audiences, "seen": _moment(row["seen"])}
    if name == MARKED:
        fields["_updated_at"] = _moment(row["updated_at"])
    served = found | {what: _moment(found[what]) for what in ("seen", "_updated_at")}
    if name == REMOVED:
        del served["_updated_at"]
    return served == fields


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10, help="for how long rows change (default 10)")
    options.add_argument("--refresh", type=int, default=3, help="the cadence in seconds (default 3)")
    options.add_argument("--seed", type=int, default=1, help="of all that is drawn at random")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeprofile-") as folder:
        found = churn(Path(folder), chosen.minutes * 60, chosen.refresh, chosen.seed)
    problems = [*(f"wrong: {each}" for each in found.wrong), *(f"late: {each}" for each in found.late)]
    print(*found.facts, *(problems or ["all profiles are as they are in the tables"]), sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
