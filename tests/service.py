"""A real service for the tests: a DuckDB file, the real loader, and `edgeprofile serve` as processes of its own.

Nothing here stands in for a part of ours. Requests go over plain sockets, so that a test can send what no HTTP
client would.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import msgspec

from edgeprofile import keys, settings, snapshot, wire
from edgeprofile.loader.refresh import refresh
from edgeprofile.outcomes import Outcome

T = TypeVar("T")
Header = tuple[str, str]

HOST = "127.0.0.1"
ANSWER_SECONDS_MAX = 20.0
READY_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
# Below those that Linux deals out to clients. Each process that runs tests has a block of them.
BLOCKS_OF_PORTS = range(20_000, 32_000, 250)
# Far above what any test sends, so that only the tests of limits meet them.
UNLIMITED = "rate = 1_000_000\nburst_rate = 1_000_000\nburst_seconds = 0"
# What most services serve: an email is found however it is typed, and one device may be several profiles'.
DECLARED = """
id = "profile_id"
updated_at = "updated_at"
identifiers = [{ column = "email", normalize = "lower" }, { column = "device_id", unique = false }]
metrics = ["lifetime_value"]
audiences = ["high_spenders", "churn_risk"]
"""
WORKSPACE = """
[workspaces.{name}]
shrink_max = 1.0
source = {{ url = "duckdb:///{name}.duckdb" }}
[workspaces.{name}.profiles]
sql = "SELECT * FROM profiles"
{declared}
"""


def until(look: Callable[[], T], what: str, seconds_max: float = READY_SECONDS_MAX) -> T:
    """Polls until `look` gives something true, and returns it. Fails, saying `what`, after `seconds_max`."""
    give_up = time.monotonic() + seconds_max
    while not (found := look()):
        assert time.monotonic() < give_up, f"not within {seconds_max} s: {what}"
        time.sleep(0.005)
    return found


# --- requests and answers ------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A whole answer. Names of headers are in lower case; one that comes twice fails the test."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def code(self) -> str:
        """The code of a problem."""
        return str(self.json()["code"])


def request(target: str, key: str | None = None, *headers: Header, method: str = "GET", body: bytes = b"") -> bytes:
    """A request as bytes. `target` goes out as it is: escape it yourself."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test"]
    lines += [] if key is None else [f"Authorization: Bearer {key}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def many(asked: object, key: str | None, *headers: Header, method: str = "POST", length: int | None = None) -> bytes:
    """A request for many profiles. `asked` is its body, bytes or what becomes JSON; `length` is announced if given."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    announced = ("Content-Length", str(len(body) if length is None else length))
    return request("/v1/profiles/lookup", key, announced, *headers, method=method, body=body)


def chunked(asked: bytes, key: str | None, *headers: Header, chunk_bytes: int = 16) -> bytes:
    """As `many`, in chunks, so that nothing tells the length beforehand."""
    chunks = [asked[at : at + chunk_bytes] for at in range(0, len(asked), chunk_bytes)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    encoding = ("Transfer-Encoding", "chunked")
    return request("/v1/profiles/lookup", key, encoding, *headers, method="POST", body=body)


class Connection:
    """A keep-alive connection. Requests may be pipelined: `send` many, then `read` as many answers."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection((HOST, port), ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self._socket = context.wrap_socket(self._socket, server_hostname=HOST)
        self._file = self._socket.makefile("rb")
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def read(self, *, is_head: bool = False) -> Answer:
        """One answer. Raises ConnectionError where the server closed instead of giving a whole one."""
        status_line = self._file.readline()
        if not status_line:
            raise ConnectionResetError("closed without an answer")
        status = int(re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [^\r]*\r\n", status_line)[1])  # type: ignore[index]
        headers: dict[str, str] = {}
        while (line := self._file.readline()) != b"\r\n":
            if not line.endswith(b"\r\n"):
                raise ConnectionResetError("closed within the headers")
            name, _, value = line.decode("latin-1").rstrip("\r\n").partition(": ")
            assert headers.setdefault(name.lower(), value) is value, f"{name} came twice"
        assert "transfer-encoding" not in headers, "every answer of ours has a known length"
        size = 0 if is_head or status == 304 else int(headers.get("content-length", 0))
        body = self._file.read(size)
        if len(body) != size:
            raise ConnectionResetError("closed within the body")
        return Answer(status, headers, body)

    def ask(self, content: bytes) -> Answer:
        self.send(content)
        return self.read(is_head=content.startswith(b"HEAD "))

    def is_to_continue(self) -> bool:
        """Whether the server asks for the body of a request that expects it to."""
        return self._file.readline().startswith(b"HTTP/1.1 100 ") and self._file.readline() == b"\r\n"

    def end(self) -> None:
        """Tells the server that no more is to come; its answers can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def is_closed(self) -> bool:
        """Whether the server closes the connection now, rather than waiting for more; sends nothing."""
        return self._file.read(1) == b""

    def read_all(self) -> bytes:
        """All that comes until the server closes the connection."""
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def exchange(port: int, content: bytes, context: ssl.SSLContext | None = None) -> Answer:
    """Sends bytes over a connection of their own and reads one answer. Raises ConnectionError for none."""
    with Connection(port, context) as connection:
        return connection.ask(content)


# --- the service ---------------------------------------------------------------------------------------------------


@functools.cache
def claimed_ports() -> tuple[Iterator[int], socket.socket]:
    """Those of a block, in turn and without end, and what keeps other runs of tests off them: its first one, bound."""
    for first in BLOCKS_OF_PORTS:
        claim = socket.socket()
        if binds(claim, first):
            return itertools.cycle(range(first + 1, first + BLOCKS_OF_PORTS.step)), claim
        claim.close()
    raise AssertionError("other runs of tests have claimed all ports")


def binds(probe: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):
        probe.bind((HOST, port))
        return True
    return False


def free_port() -> int:
    """A port that nothing listens on, and that no other process of tests is given before a server has it."""
    ports, _ = claimed_ports()
    for port in ports:
        with socket.socket() as probe:
            if binds(probe, port):
                return port
    raise AssertionError("the ports have no end")


class Service:
    """A settings file and its data in `folder`, and, between `start` and `stop`, the processes that serve them.

    `spaces` has, by a workspace's name, what its [profiles] table declares; each reads the table `profiles` of the
    file NAME.duckdb. `server` and `limits` are lines of the tables of these names. Its clients speak TLS by `context`,
    if that is given. Only `with_admin` has it an admin listener.
    """

    def __init__(
        self,
        folder: Path,
        spaces: dict[str, str] | None = None,
        *,
        workers: int = 1,
        limits: str = UNLIMITED,
        server: str = "ready_delay_seconds = 0\ndrain_seconds = 5",
        with_admin: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.admin_port = free_port() if with_admin else 0
        self.file = folder / "edgeprofile.toml"
        text = f'data_dir = "state"\n[server]\nport = {self.port}\nadmin_port = {self.admin_port}\n'
        text += f"workers = {workers}\n{server}\n"
        text += f"[limits]\n{limits}\n"
        self.file.write_text(text, encoding="utf-8")
        for name, declared in (spaces or {"shop": DECLARED}).items():
            self.add_workspace(name, declared)
        self.workers_wanted = workers
        self.context = context
        self.secrets: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._is_released = False

    # Its state on disk.

    def add_workspace(self, name: str, declared: str) -> None:
        """Puts a workspace behind those in the settings; a service that runs has to be told."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(WORKSPACE.format(name=name, declared=declared))
        self.settings = settings.load(self.file, {})

    def run_sql(self, sql: str, workspace: str = "shop") -> None:
        """Changes the warehouse."""
        with duckdb.connect(str(self.folder / f"{workspace}.duckdb")) as connection:
            connection.execute(sql)

    def load(self, workspace: str = "shop", at: snapshot.AtStep = snapshot.nothing) -> Outcome:
        """Publishes what the warehouse holds; `at` is called behind each of `snapshot.STEPS`."""
        return refresh(self.settings, workspace, force=False, progress=lambda *_: None, at=at)

    def key(self, workspace: str = "shop", **options: Any) -> str:
        """A new key, as callers send it, which all workers know by now. `options` are those of `keys.create`."""
        token = self.mint(workspace, **options)
        if self._process is not None:
            # Asking by the key itself would cost its tokens. Who knows this later one knows that one too.
            later = request("/v1/profiles/id/1", self.mint(workspace, scopes=("write",)))
            for connection in self.connect_to_each():
                with connection:
                    until(lambda: connection.ask(later).status == 403, "a new key is known")  # noqa: B023
        return token

    def mint(self, workspace: str = "shop", **options: Any) -> str:
        """As `key`, without waiting for the workers."""
        token, _ = keys.create(self.settings.data_dir, workspace, **options)
        self.secrets.append(token.rpartition("_")[2])
        return token

    def revoke(self, token: str) -> None:
        keys.revoke(self.settings.data_dir, token.split("_")[2])

    def home(self, workspace: str = "shop") -> Path:
        return snapshot.home(self.settings.data_dir, workspace)

    # Its processes.

    def start(self, *, ready: int = 200, **options: Any) -> Service:
        """Starts it and waits until /readyz answers `ready` and all workers run. `options` are those of Popen, where
        standard output and error are the log unless given.
        """
        command = [sys.executable, "-m", "edgeprofile", "serve", "--config", str(self.file)]
        with self._log.open("ab") as log:
            options = {"stdout": log, "stderr": log, **options}
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self._is_released = False
        # The admin listener first: until it has its name, it looks like a worker.
        until(lambda: not self.admin_port or self.admin(), "the admin listener is up")
        if any(workspace.batch for workspace in self.settings.workspaces.values()):
            until(lambda: self.gateway() and is_served(self.settings.data_dir / wire.GATEWAY), "the gateway is up")
        until(lambda: len(self.workers()) == self.workers_wanted and self._readiness() == ready, "the service is up")
        until(lambda: not self.admin_port or is_listening(self.admin_port), "the admin listener takes connections")
        return self

    def watch(self, under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts the loader as a service, which takes updates too, and waits until it does. `under` is a command that
        runs it.
        """
        command = [*under, sys.executable, "-m", "edgeprofile", "load", "--watch", "--config", str(self.file)]
        with self._log.open("ab") as log:
            self._watcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for workspace in self.settings.workspaces:
            path = self.home(workspace) / wire.UPDATES
            until(lambda: is_served(path), "updates are taken")  # noqa: B023
        return self._watcher

    def watcher(self) -> subprocess.Popen[bytes]:
        """The process that `watch` has started last."""
        assert self._watcher is not None
        return self._watcher

    def kill_all(self) -> None:
        """Ends every process of it at once, without a warning to any."""
        children = self._children()
        process, watcher = self.release(), self.watcher()
        process.kill()
        watcher.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        watcher.wait()
        self._watcher = None
        until(lambda: not any(map(mappings, children)), "all are gone")

    def stop(self) -> None:
        """Ends it as a supervisor would. Fails the test for an unclean end, a traceback or a secret in the log."""
        if self._watcher is not None:
            self._watcher.terminate()
            self._watcher.wait(STOP_SECONDS_MAX)
            self._watcher = None
        process, self._process = self._process, None
        if process is None or self._is_released:
            return
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        log = self.log()
        assert "Traceback" not in log, log
        assert "panicked" not in log, log
        assert not [secret for secret in self.secrets if secret in log]
        assert status == 0, f"exit status {status}\n{log}"

    @property
    def pid(self) -> int:
        """Its main process's."""
        assert self._process is not None
        return self._process.pid

    def release(self) -> subprocess.Popen[bytes]:
        """Hands its main process to a test that ends it itself."""
        assert self._process is not None
        self._is_released = True
        return self._process

    @property
    def _log(self) -> Path:
        return self.folder / "serve.log"

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _readiness(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            return self.ask(request("/readyz")).status
        except ConnectionError:
            return 0

    def workers(self) -> list[int]:
        """The pids of the workers: those children that are called so, and have the shared map mapped."""
        return [pid for pid in self._children() if "shared.map" in mappings(pid) and own_name(pid) == "wrk"]

    def admin(self) -> int | None:
        """The pid of the admin listener; None while there is none."""
        return self._named("adm")

    def gateway(self) -> int | None:
        """The pid of the gateway; None while there is none."""
        return self._named("gtw")

    def _named(self, name: str) -> int | None:
        return next((pid for pid in self._children() if own_name(pid) == name), None)

    def _children(self) -> list[int]:
        """The main process's, whichever of its threads has started them."""
        assert self._process is not None
        children: list[int] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for thread in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
                children += map(int, thread.read_text().split())
        return children

    def worker_of(self, connection: Connection) -> int | None:
        """The pid of the worker that holds the other end of a connection, None where that is no worker (yet)."""
        return self.worker_at(connection.port)

    def worker_at(self, port: int) -> int | None:
        """The same of the connection that has this port at our end."""
        ours = f":{self.port:04X} 0100007F:{port:04X} "
        table = Path("/proc/net/tcp").read_text().splitlines()
        inode = next((line.split()[9] for line in table if ours in line), None)
        for pid in self.workers():
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if str(entry.readlink()) == f"socket:[{inode}]":
                        return pid
                except FileNotFoundError:
                    continue
        return None

    def connect(self) -> Connection:
        return Connection(self.port, self.context)

    def connect_to_each(self, connections_max: int = 400) -> list[Connection]:
        """One connection to each worker; the kernel deals them out, so it may take several tries."""
        found: dict[int, Connection] = {}
        for _ in range(connections_max):
            connection = self.connect()
            connection.ask(request("/livez"))
            pid = self.worker_of(connection)
            if pid is None or found.setdefault(pid, connection) is not connection:
                connection.close()
            if len(found) == self.workers_wanted:
                return list(found.values())
        raise AssertionError(f"{connections_max} connections reached {len(found)} of {self.workers_wanted} workers")

    # Requests.

    def ask(self, content: bytes) -> Answer:
        return exchange(self.port, content, self.context)

    def get(self, target: str, key: str | None = None, *headers: Header, method: str = "GET") -> Answer:
        return self.ask(request(target, key, *headers, method=method))


def mappings(pid: int) -> str:
    """What a process has mapped; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def own_name(pid: int) -> str:
    """What a process that is kept beside the workers is called; nothing for all others."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return name.removeprefix("edgeprofile-").strip() if name.startswith("edgeprofile-") else ""


def is_listening(port: int) -> bool:
    """Whether connections to a port of this machine are taken."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def is_served(path: Path) -> bool:
    """Whether a process answers at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection, wire.address_of(path) as address:
        return connection.connect_ex(address) == 0


def pipelined(connection: Connection, content: bytes, times: int, at_once: int = 100) -> Iterable[Answer]:
    """The answers to one request sent `times` times, `at_once` of them in flight."""
    for first in range(0, times, at_once):
        count = min(at_once, times - first)
        connection.send(content * count)
        for _ in range(count):
            yield connection.read()


# --- snapshots on disk ---------------------------------------------------------------------------------------------


def change_manifest(folder: Path, **changes: object) -> None:
    file = folder / snapshot.MANIFEST
    manifest = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    file.write_bytes(msgspec.json.encode({**manifest, **changes}))


def copy_snapshot(whole: Path, copied: Path) -> None:
    """Copies a published snapshot's folder under another name, which its manifest then has too."""
    shutil.copytree(whole, copied)
    change_manifest(copied, name=copied.name)
