"""What a PostgreSQL that is down, slow, cut off, changed or locked does to a load: a clear line, the old snapshot on.

After each, the next load recovers by itself.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from postgres import ESCAPED, HOST, PASSWORD, USER, Postgres
from workshop import COMMAND, WAIT_SECONDS_MAX, Workshop, environment, until

from edgeprofile import outcomes
from edgeprofile.errors import EdgeprofileError, ModelError, RefreshRefused, SourceError
from edgeprofile.loader import adbc
from edgeprofile.loader.source import open_source

SECRET = "hush-4711"  # stands for a value that no line may show
MODEL = "SELECT id, name, changed FROM people"
PEOPLE = """
DROP TABLE IF EXISTS people;
CREATE TABLE people AS SELECT n AS id, 'name ' || n AS name, now() AS changed FROM generate_series(1, 3) AS n;
"""
# Sends 20 MB of rows at once, and then no more.
STALLS = """
SELECT n AS id, repeat('x', 5000) AS text FROM generate_series(1, 4000) AS n
UNION ALL SELECT 0, pg_sleep(600)::text
"""
SLEEPS = "SELECT 1 AS id, pg_sleep(600)::text AS text"


class Case(NamedTuple):
    """A workspace that serves a snapshot, and the database that it came from."""

    server: Postgres
    database: str
    shop: Workshop

    def model(self, sql: str, **keys: Any) -> Workshop:
        return self.shop.model(sql, **({"url": self.server.url(self.database)} | keys))

    def fails(self, kind: type[EdgeprofileError], says: str | None = None) -> EdgeprofileError:
        """Loads, which ends in this error; what was served is served on, and no secret is said."""
        before, served = self.shop.current(), self.shop.bodies()
        with pytest.raises(kind, match=says) as raised:
            self.shop.load()
        assert (self.shop.current(), self.shop.bodies()) == (before, served)
        assert self.shop.leftovers() == []
        assert str(raised.value) == outcomes.read(self.shop.home).last[-1].message
        noted = (self.shop.home / outcomes.REFRESH).read_text()
        assert not any(secret in noted for secret in (SECRET, PASSWORD, ESCAPED))
        for text in (str(raised.value), raised.value.hint or ""):
            assert "\n" not in text
            assert not any(secret in text for secret in (SECRET, PASSWORD, ESCAPED, "4711"))
        return raised.value

    def recovers(self) -> None:
        """The next load is as good as any."""
        self.server.ask("UPDATE people SET name = name || '!'", self.database)
        assert self.model(MODEL).load() == "published"
        assert self.shop.profiles()["1"]["name"] == "name 1!"


def served_from(server: Postgres, database: str, folder: Path) -> Case:
    server.ask(PEOPLE, database, USER)
    made = Case(server, database, Workshop(folder))
    made.model(MODEL).load()
    return made


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.database()


@pytest.fixture
def case(postgres: Postgres, database: str, tmp_path: Path) -> Case:
    return served_from(postgres, database, tmp_path)


@pytest.fixture(scope="module")
def served(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """For tests of loads that publish nothing, and of nothing but them."""
    return served_from(postgres, postgres.database(), tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def mortal() -> Iterator[Postgres]:
    """A server that a test may stop, if it starts it again."""
    server = Postgres()
    yield server
    server.remove()


@contextlib.contextmanager
def meanwhile(do: Callable[[], object]) -> Iterator[None]:
    """Something that another thread does."""
    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def when_it_sleeps(server: Postgres, then: Callable[[int], object]) -> Callable[[], None]:
    """Does something to the server's process that runs the model, once that has come to its pg_sleep()."""

    def wait_and_do() -> None:
        until(lambda: bool(server.sleeping()))
        then(server.sleeping()[0])

    return wait_and_do


# --- models --------------------------------------------------------------------------------------------------------

MODELS = [
    ("a syntax error", "SELECT 1 AS id,\n FROM people", ModelError,
     r'^the model\'s SQL: syntax error at or near "FROM" \(line 2\)$'),
    ("a table that is missing", "SELECT id FROM poeple", ModelError,
     r'^the model\'s SQL: relation "poeple" does not exist \(line 1\)$'),
    ("a column that is missing", "SELECT idd FROM people", ModelError, 'column "idd" does not exist'),
    ("two statements", "SELECT 1 AS id; SELECT 2 AS id", ModelError, "multiple commands"),
    ("a comment alone", "-- nothing", ModelError, "^the model's SQL must be one SELECT statement$"),
    ("an insert", "INSERT INTO people VALUES (7)", ModelError, "^the model's SQL must be one SELECT statement$"),
    ("an insert that returns", "INSERT INTO people VALUES (7) RETURNING id", ModelError, "^the model's SQL: syntax"),
    ("a write behind WITH", "WITH w AS (DELETE FROM people RETURNING id) TABLE w", ModelError, "must be at the top"),
    ("brackets that only balance", "SELECT 1 AS id) AS made, (SELECT 2 AS other", ModelError, "syntax error"),
    ("a parameter", "SELECT $1 AS id", ModelError, "^the model's SQL: there is no parameter"),
    ("a bad cast of a constant", "SELECT 'x'::int AS id", ModelError, "invalid input syntax for type integer"),
    ("a division by zero half-way", "SELECT 1000 / (900 - n) AS id FROM generate_series(1, 1000) AS n", SourceError,
     "^the model could not be run: division by zero$"),
    ("a bad cast half-way",
     f"SELECT CASE WHEN n = 900 THEN '{SECRET}' ELSE '1' END::int AS id FROM generate_series(1, 1000) AS n",
     SourceError, r"^the model could not be run: invalid input syntax for type integer: …$"),
    ("an error that quotes a row",
     f"SELECT n AS id, jsonb_build_object('a', '{SECRET}' || n)::int AS a FROM generate_series(1, 9) AS n",
     SourceError, "^the model could not be run: cannot cast jsonb object to type integer$"),
    ("two columns of one name", "SELECT 1 AS id, 2 AS a, 3 AS a", ModelError, "^column a stands 2 times"),
    ("columns without names", "SELECT 1 AS id, 'x', 'y'", ModelError, r"^column \?column\? stands 2 times"),
    ("an id column that is missing", "SELECT 1 AS idd", ModelError, r"did you mean idd\?$"),
    ("no columns", "SELECT FROM people", ModelError, "^the model's SQL must be one SELECT statement$"),
    ("too many columns", f"SELECT {', '.join(f'1 AS c{n}' for n in range(1700))}", ModelError, "at most 1664"),
    ("an empty result", "SELECT id FROM people WHERE false", RefreshRefused, "^the model gave no profiles$"),
    ("a null id", "SELECT NULL::int AS id", RefreshRefused, r"\(null_id: 1\)"),
    ("ids that stand twice", "SELECT 1 AS id FROM people", RefreshRefused, r"\(duplicate_id: 2\)"),
    ("no privilege", "SELECT rolname AS id FROM pg_authid", SourceError, "permission denied for table pg_authid"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "kind", "says"), [each[1:] for each in MODELS], ids=[name.replace(" ", "_") for name, *_ in MODELS]
)
def test_a_bad_model_is_a_clear_line_and_the_old_snapshot_stays(
    served: Case, sql: str, kind: type[EdgeprofileError], says: str
) -> None:
    served.model(sql)
    served.fails(kind, says)


def test_errors_of_both_models_are_said_together(served: Case) -> None:
    events = {"sql": "SELECT 1 AS id FROM nowhere", "profile": "id", "name": "name", "time": "at"}
    served.model("SELECT x AS id FROM people", events=events)
    error = served.fails(ModelError)
    assert isinstance(error, ModelError)
    assert error.problems == [
        'the model\'s SQL: column "x" does not exist (line 1)',
        "the events' model's SQL: relation \"nowhere\" does not exist (line 1)",
    ]


def test_a_dropped_column_is_named_and_the_next_load_recovers(case: Case) -> None:
    case.server.ask("ALTER TABLE people RENAME COLUMN name TO title", case.database)
    case.fails(ModelError, 'column "name" does not exist')
    case.server.ask("ALTER TABLE people RENAME COLUMN title TO name", case.database)
    case.recovers()


def test_a_column_of_another_type_is_served_as_that(case: Case) -> None:
    case.server.ask("ALTER TABLE people ALTER COLUMN name TYPE text[] USING ARRAY[name]", case.database)
    assert case.shop.load() == "published"
    assert case.shop.profiles()["1"]["name"] == ["name 1"]


def test_a_column_that_is_dropped_between_plan_and_run_is_told(case: Case) -> None:
    settings, scratch = case.shop.settings(), case.shop.folder / "scratch"
    with open_source(settings.workspaces["shop"].source, settings.loader, settings.folder, scratch) as source:
        source.describe(MODEL)
        case.server.ask("ALTER TABLE people DROP COLUMN name", case.database)
        with pytest.raises(SourceError, match=r"^the model could not be run: column … does not exist$"):
            source.materialise(MODEL, lambda rows: f"CREATE TEMP TABLE made AS FROM {rows}")


def test_a_connection_that_was_idle_for_too_long_is_made_anew(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adbc, "IDLE_SECONDS_MAX", 0)
    settings, scratch = case.shop.settings(), case.shop.folder / "scratch"
    with open_source(settings.workspaces["shop"].source, settings.loader, settings.folder, scratch) as source:
        source.describe(MODEL)
        case.server.ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'")
        source.materialise(MODEL, lambda rows: f"CREATE TEMP TABLE made AS FROM {rows}")
        assert source.ask("SELECT count(*) FROM made") == [(3,)]


# --- the connection ------------------------------------------------------------------------------------------------

URLS = [
    (f"postgresql://loader:{SECRET}@{HOST}:PORT/NAME", "the warehouse refuses the login"),
    (f"postgres://nobody_{SECRET}:x@{HOST}:PORT/NAME", "the warehouse refuses the login"),
    (f"postgresql://loader@{HOST}:PORT/NAME", "the warehouse refuses the login"),
    (f"postgresql://loader:{ESCAPED}@{HOST}:PORT/{SECRET}", "the warehouse has no such database"),
    (f"postgresql://loader:{SECRET}%zz@{HOST}:PORT/NAME", "the warehouse could not be connected to"),
    (f'postgresql://loader:{SECRET}" "{SECRET}@{HOST}:PORT/NAME', "the warehouse could not be connected to"),
    (f"postgresql://loader:{SECRET}@{HOST}:PORT/NAME?sslmode={SECRET}", "the warehouse does not agree on how to"),
    (f"postgresql://loader:{SECRET}@{HOST}:PORT/NAME?sslmode=require", "the warehouse does not agree on how to"),
    (f"postgresql://loader:{SECRET}@{HOST}:PORT/NAME?{SECRET}={SECRET}", "the warehouse could not be connected to"),
    (f"postgresql://loader:{SECRET}@[{HOST}:PORT/NAME", "the warehouse could not be connected to"),
    (f"postgresql://loader:{SECRET}@/NAME?host=/nowhere", "the warehouse is not there: the connection was refused"),
    (f"postgresql://loader:{SECRET}@nohost.invalid/NAME", "the warehouse is not there: its host has no address"),
]  # fmt: skip


@pytest.mark.parametrize(("url", "says"), URLS)
def test_a_url_that_leads_nowhere_is_told_without_a_word_of_it(served: Case, url: str, says: str) -> None:
    served.model(MODEL, url=url.replace("PORT", str(served.server.port)).replace("NAME", served.database))
    served.fails(SourceError, f"^{says}")


def test_a_wrong_password_is_in_no_line_and_no_status(case: Case) -> None:
    case.model(MODEL, url=case.server.url(case.database).replace(ESCAPED, SECRET))
    ended, status = case.shop.run("load"), case.shop.run("status")
    assert (ended.status, ended.complaints) == (1, ["edgeprofile: shop: the warehouse refuses the login"])
    assert "source_error" in status.out
    assert SECRET not in ended.err + ended.out + status.err + status.out
    case.recovers()


def test_the_environment_may_give_the_password(case: Case) -> None:
    case.model(MODEL, url=f"postgresql://loader:${{PASSWORD}}@{HOST}:{case.server.port}/{case.database}")
    assert case.shop.run("load", env={"PASSWORD": ESCAPED}).out.startswith("shop: unchanged")
    ended = case.shop.run("load", env={"PASSWORD": SECRET})
    assert ended.complaints == ["edgeprofile: shop: the warehouse refuses the login"]


def test_a_server_that_takes_connections_and_says_nothing_is_given_up(case: Case) -> None:
    with socket.create_server((HOST, 0)) as silent:
        case.model(MODEL, url=f"postgresql://loader:x@{HOST}:{silent.getsockname()[1]}/x", timeout="1s")
        error = case.fails(SourceError, "^the warehouse has been silent for 1 s$")
        assert error.hint == "if it needs that long, raise source.timeout"
    case.recovers()


def test_a_server_that_is_down_is_told_and_the_load_after_its_start_is_good(mortal: Postgres, tmp_path: Path) -> None:
    own = served_from(mortal, "postgres", tmp_path)
    own.server.stop(signal.SIGINT)
    own.fails(SourceError, "^the warehouse is not there: the connection was refused$")
    status = own.shop.run("status")
    assert (status.status, "source_error" in status.out) == (0, True)
    own.server.start()
    own.recovers()


@pytest.mark.parametrize("sql", [STALLS, SLEEPS], ids=["in mid-stream", "before the first row"])
def test_a_server_that_dies_meanwhile_is_told_and_the_load_after_its_start_is_good(
    mortal: Postgres, tmp_path: Path, sql: str
) -> None:
    own = served_from(mortal, "postgres", tmp_path)
    own.model(sql)
    with meanwhile(when_it_sleeps(own.server, lambda _: own.server.stop())):
        own.fails(SourceError, "^the model could not be run: (terminating connection|server closed the connection)")
    own.server.start()
    own.recovers()


@pytest.mark.parametrize("sql", [STALLS, SLEEPS], ids=["in mid-stream", "before the first row"])
@pytest.mark.parametrize(("how", "says"), [("terminate", "terminating connection"), ("cancel", "canceling statement")])
def test_a_connection_that_is_cut_off_is_told(case: Case, sql: str, how: str, says: str) -> None:
    case.model(sql)
    with meanwhile(when_it_sleeps(case.server, lambda pid: case.server.ask(f"SELECT pg_{how}_backend({pid})"))):
        case.fails(SourceError, f"^the model could not be run: {says} due to")
    case.recovers()


@pytest.mark.parametrize("sql", [STALLS, SLEEPS], ids=["in mid-stream", "before the first row"])
def test_a_server_that_falls_silent_is_given_up_and_its_query_cancelled(case: Case, sql: str) -> None:
    case.model(sql, timeout="2s")
    case.fails(SourceError, "^the warehouse has been silent for 2 s$")
    until(lambda: case.server.loading() == [])
    case.recovers()


def test_a_process_of_the_server_that_hangs_is_given_up(case: Case) -> None:
    case.model(STALLS, timeout="5s")
    with contextlib.ExitStack() as stack:
        with meanwhile(when_it_sleeps(case.server, lambda pid: stack.enter_context(case.server.frozen(pid)))):
            case.fails(SourceError, "^the warehouse has been silent for 5 s$")
        case.recovers()


def test_a_locked_table_is_told_and_the_load_after_that_is_good(case: Case) -> None:
    case.model(MODEL, timeout="4s")
    with case.server.holding("LOCK TABLE people IN ACCESS EXCLUSIVE MODE", case.database):
        case.fails(SourceError, "^the model could not be planned: canceling statement due to lock timeout$")
    case.recovers()


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "number", "hangs"),
    [
        (STALLS, signal.SIGTERM, False),
        (STALLS, signal.SIGTERM, True),
        (SLEEPS, signal.SIGINT, False),
        (SLEEPS, signal.SIGTERM, True),
    ],
)
def test_a_signal_ends_a_load_that_waits_for_the_server(
    case: Case, sql: str, number: signal.Signals, hangs: bool
) -> None:
    case.model(sql)
    with subprocess.Popen(
        [*COMMAND, "load"], cwd=case.shop.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        until(lambda: bool(case.server.sleeping()), process)
        with case.server.frozen(case.server.sleeping()[0]) if hangs else contextlib.nullcontext():
            process.send_signal(number)
            _, told = process.communicate(timeout=WAIT_SECONDS_MAX)
        assert process.returncode == 130
    assert told.decode().splitlines()[-1] == "edgeprofile: interrupted"
    assert case.shop.leftovers() == []
    until(lambda: case.server.loading() == [])
    case.recovers()
