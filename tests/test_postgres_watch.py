"""What a bad PostgreSQL does to a whole service: what was served is served on, and all who ask are told why.

One watcher refreshes two workspaces all the time, one in full and one by deltas. Each fault must be named in the
watcher's line, the status and the metrics, and when it is over, the watcher must recover by itself.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
from postgres import ESCAPED, PASSWORD, USER, Postgres
from service import Service, until
from test_load_watch import FIELD
from test_metrics import scrape
from workshop import WAIT_SECONDS_MAX

from edgeprofile import settings
from edgeprofile.cli import main

FULL, DELTAS = "full", "deltas"
ROWS = 50
# The models read a view, so that what it gives can be changed in one place.
PEOPLE = "SELECT id, name, updated_at FROM people"
SETUP = f"""
CREATE TABLE people AS
    SELECT n AS id, 'name ' || n AS name, now() AS updated_at FROM generate_series(1, {ROWS}) AS n;
CREATE VIEW given AS {PEOPLE};
"""
SETTINGS = """
data_dir = "state"
[server]
port = {service.port}
admin_port = {service.admin_port}
ready_delay_seconds = 0
"""
WORKSPACE = """
[workspaces.{name}]
refresh = "1s"
full_refresh = {every}
overlap = "1h"
source = {{ url = "{url}", timeout = "2s" }}
[workspaces.{name}.profiles]
sql = "SELECT id, name, updated_at FROM given"
id = "id"
updated_at = "updated_at"
"""


class Case(NamedTuple):
    """The service, and the server that its models run in."""

    server: Postgres
    database: str
    service: Service
    keys: dict[str, str]

    def ask(self, sql: str) -> None:
        self.server.ask(sql, self.database, USER)

    def name(self, workspace: str) -> str:
        """What is served of a profile."""
        name: str = self.service.get("/v1/profiles/id/1", self.keys[workspace]).json()["name"]
        return name

    def lines(self, workspace: str) -> list[dict[str, str]]:
        """What the watcher has said of a workspace, by field."""
        found = []
        for line in self.service.log().splitlines():
            fields = {key: text or json.loads(quoted) for key, quoted, text in FIELD.findall(line)}
            if fields.get("workspace") == workspace:
                found.append(fields)
        return found

    def ended(self, workspace: str, outcome: str) -> float:
        """How many refreshes have ended so, by the metrics."""
        return scrape(self.service)["edgeprofile_refresh_total"].get((outcome, workspace), 0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    server = Postgres()
    database = server.database(SETUP)
    service = Service(tmp_path_factory.mktemp("service"), with_admin=True)
    url = server.url(database)
    text = SETTINGS.format(service=service)
    text += "".join(WORKSPACE.format(name=name, every=every, url=url) for name, every in ((FULL, 1), (DELTAS, 1_024)))
    service.file.write_text(text)
    service.settings = settings.load(service.file, {})
    try:
        for name in (FULL, DELTAS):
            service.load(name)
        service.watch()
        service.start()
        yield Case(server, database, service, {name: service.key(name) for name in (FULL, DELTAS)})
        assert not any(secret in service.log() for secret in (PASSWORD, ESCAPED))
    finally:
        service.stop()
        server.remove()


# Brings a fault about while its context lasts; what it yields is called again and again meanwhile.
Fault = Callable[[Case], AbstractContextManager[Callable[[], object]]]


@contextlib.contextmanager
def is_down(case: Case) -> Iterator[Callable[[], object]]:
    case.server.stop(signal.SIGINT)
    yield lambda: None
    case.server.start()


@contextlib.contextmanager
def is_locked(case: Case) -> Iterator[Callable[[], object]]:
    with case.server.holding("LOCK TABLE people IN ACCESS EXCLUSIVE MODE", case.database):
        yield lambda: None


def changed(there: str, back: str) -> Fault:
    """What SQL brings about, and mends."""

    @contextlib.contextmanager
    def fault(case: Case) -> Iterator[Callable[[], object]]:
        case.ask(there)
        yield lambda: None
        case.ask(back)

    return fault


def given(sql: str) -> Fault:
    """What comes of another content of the view."""
    return changed(f"CREATE OR REPLACE VIEW given AS {sql}", f"CREATE OR REPLACE VIEW given AS {PEOPLE}")


# Sends 20 MB of rows at once, and then no more.
STALLS = f"{PEOPLE} UNION ALL SELECT n, repeat('x', 5000), now() FROM generate_series(1001, 5000) AS n"
STALLS += " UNION ALL SELECT 0, pg_sleep(600)::text, now()"


@contextlib.contextmanager
def is_cut_off(case: Case) -> Iterator[Callable[[], object]]:
    with given(STALLS)(case):
        yield lambda: case.server.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        )


# The fault, what a full refresh ends with, what is said, and whether a delta ends with the same.
FAULTS: dict[str, tuple[Fault, str, str, bool]] = {
    "down": (is_down, "source_error", "the warehouse is not there", True),
    "slow": (given(f"{PEOPLE} UNION ALL SELECT 0, pg_sleep(600)::text, now()"), "source_error",
             "the warehouse has been silent for 2 s", True),
    "cut off in mid-stream": (is_cut_off, "source_error", "the model could not be run: terminating connection", True),
    "changed types": (changed("DROP VIEW given; CREATE VIEW given AS SELECT id::float8, name, updated_at FROM people",
                              f"DROP VIEW given; CREATE VIEW given AS {PEOPLE}"),
                      "model_error", "column id: an identifier is text, an integer or a UUID", True),
    "a dropped column": (changed("DROP VIEW given; CREATE VIEW given AS SELECT id, updated_at FROM people",
                                 f"DROP VIEW given; CREATE VIEW given AS {PEOPLE}"),
                         "model_error", 'column "name" does not exist', True),
    "a locked table": (is_locked, "source_error", "canceling statement due to lock timeout", True),
    "wrong credentials": (changed(f"ALTER ROLE {USER} PASSWORD 'other'", f"ALTER ROLE {USER} PASSWORD '{PASSWORD}'"),
                          "source_error", "the warehouse refuses the login", True),
    "an empty result": (given(f"{PEOPLE} WHERE false"), "empty", "the model gave no profiles", False),
    "60 % fewer rows": (given(f"{PEOPLE} WHERE id <= {ROWS * 4 // 10}"), "shrunk", "more of a loss than shrink_max",
                        False),
    "a row of 20 MB": (given(f"{PEOPLE} UNION ALL SELECT 0, repeat('x', 20000000), now()"), "too_many_rejects",
                       "record_too_large: 1", False),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[name.replace(" ", "_") for name in FAULTS])
def test_whatever_is_wrong_is_told_everywhere_while_all_is_served_on_and_mends_itself(
    case: Case, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_about, outcome, message, also_deltas = FAULTS[fault]
    names = (FULL, DELTAS) if also_deltas else (FULL,)
    served = {name: case.name(name) for name in names}
    counted = {name: case.ended(name, outcome) for name in names}
    said = {name: len(case.lines(name)) for name in names}

    def is_said(name: str) -> bool:
        meanwhile()
        new = case.lines(name)[said[name] :]
        return any(line["outcome"] == outcome and message in line["message"] for line in new)

    with bring_about(case) as meanwhile:
        case.service.watcher().send_signal(signal.SIGHUP)
        for name in names:
            until(lambda: is_said(name), f"the fault of {name} is said", WAIT_SECONDS_MAX)  # noqa: B023
        assert {name: case.name(name) for name in names} == served
        status = status_of(case, capsys)
        for name in names:
            ended = [each for each in status[name]["history"] if each["outcome"] == outcome]
            assert message in ended[-1]["message"]
            assert status[name]["refreshes"][outcome] > counted[name]
            assert case.ended(name, outcome) > counted[name]
    case.ask("UPDATE people SET name = name || '!', updated_at = now() WHERE id = 1")
    for name in (FULL, DELTAS):
        until(lambda: case.name(name).endswith("!" * (1 + served[FULL].count("!"))), f"{name} recovers", 60)  # noqa: B023
        # What is served is noted a moment behind.
        until(lambda: status_of(case, capsys)[name]["problem"] is None, f"{name} is well", 60)  # noqa: B023


def status_of(case: Case, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What `edgeprofile status --json` says, by workspace."""
    with pytest.raises(SystemExit):
        main(["status", "--json", "--config", str(case.service.file)])
    return {each["workspace"]: each for each in json.loads(capsys.readouterr().out)}
