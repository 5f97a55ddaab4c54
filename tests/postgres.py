"""A PostgreSQL server of the tests' own, which an unprivileged user runs in a folder of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from service import free_port
from workshop import WAIT_SECONDS_MAX, until

HOST = "127.0.0.1"
# Who loads, by a password that must be written with escapes in a URL, and shown nowhere.
USER, PASSWORD, ESCAPED = "loader", "hush/4711@%", "hush%2F4711%40%25"
PROGRAMS = ("initdb", "postgres", "psql")
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
}
# Without a clause for `replication`, and with a password from the network only.
ACCESS = f"local all all trust\nhost all all {HOST}/32 scram-sha-256\n"
# The loader's query, of those that the server works on.
LOADING = f"usename = '{USER}' AND state = 'active'"


def programs() -> Path:
    """The folder of the server's programs, the newest's where there are several."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*known, *([Path(on_path).resolve().parent] if on_path else [])]:
        if all((folder / name).exists() for name in PROGRAMS):
            return folder
    pytest.fail("the tests need PostgreSQL's server: apt-get install postgresql")


class Postgres:
    """A server with the superuser `admin`, through a socket in `folder`, and the loader, through a port."""

    def __init__(self) -> None:
        self.programs = programs()
        # Not in pytest's folder, which is its user's alone; and short, because a socket's path may have 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="edgeprofile-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._databases = itertools.count()
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # as whom PostgreSQL does not run
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        made = ["--username=admin", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
        self._run([f"{self.programs}/initdb", f"--pgdata={self.folder}/data", *made])
        (self.folder / "data" / "pg_hba.conf").write_text(ACCESS)
        self.start()
        self.ask(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'; GRANT ALL ON SCHEMA public TO {USER}")

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        where = ["-D", f"{self.folder}/data", "-k", str(self.folder), "-h", HOST, "-p", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", *where, *options], stdout=log, stderr=log, cwd=self.folder, **self._as
            )
        until(self._answers, self.process)

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """Ends it: at once by SIGQUIT, and as it is wont to by SIGINT."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(WAIT_SECONDS_MAX)
        self.process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def database(self, setup: str = "", options: str = "") -> str:
        """A new database, in which `setup` was run by the loader's owner of its schema; gives its name."""
        name = f"shop{next(self._databases)}"
        self.ask(f"CREATE DATABASE {name} OWNER {USER} TEMPLATE template0 {options}")
        if setup:
            self.ask(setup, name, USER)
        return name

    def url(self, database: str = "postgres") -> str:
        """As the settings have it."""
        return f"postgresql://{USER}:{ESCAPED}@{HOST}:{self.port}/{database}"

    def ask(self, sql: str, database: str = "postgres", user: str = "admin") -> str:
        """Runs SQL through the socket; gives its answer, a line a row."""
        return self._run(self._psql(database, user), sql).strip()

    def loading(self) -> list[int]:
        """Its processes that work for a loader."""
        return [int(pid) for pid in self.ask(f"SELECT pid FROM pg_stat_activity WHERE {LOADING}").split()]

    def sleeping(self) -> list[int]:
        """Those of them that have come to a pg_sleep()."""
        sql = f"SELECT pid FROM pg_stat_activity WHERE {LOADING} AND wait_event = 'PgSleep'"
        return [int(pid) for pid in self.ask(sql).split()]

    @contextlib.contextmanager
    def holding(self, sql: str, database: str) -> Iterator[Callable[[], object]]:
        """What SQL locks stays locked meanwhile, or until what this yields is called."""
        command = self._psql(database)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.folder, **self._as
        ) as session:
            assert session.stdin is not None
            assert session.stdout is not None
            session.stdin.write(f"BEGIN; {sql};\n\\echo held\n".encode())
            session.stdin.flush()
            while session.stdout.readline() != b"held\n":
                assert session.poll() is None
            yield session.terminate
            session.terminate()

    @contextlib.contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """One of its processes says nothing meanwhile."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return self.ask("SELECT 1") == "1"
        except subprocess.CalledProcessError:
            return False

    def _psql(self, database: str, user: str = "admin") -> list[str]:
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", user, "-d", database]
        return [f"{self.programs}/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", *where]

    def _run(self, command: list[str], given: str = "") -> str:
        done = subprocess.run(
            command,
            input=given.encode(),
            capture_output=True,
            check=True,
            cwd=self.folder,
            timeout=WAIT_SECONDS_MAX,
            **self._as,
        )
        answer: bytes = done.stdout
        return answer.decode()
