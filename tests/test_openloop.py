"""The open-loop generator of loadtest/: it counts what servers were asked and answered, and hides no stall."""

from __future__ import annotations

import json
import shutil
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from service import HOST, Service, until

SOURCE = Path(__file__).parent.parent / "loadtest" / "openloop.c"
RUN_SECONDS_MAX = 30
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Counts = dict[str, Any]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled without a warning."""
    compiler = shutil.which("cc")
    assert compiler is not None, "there is no C compiler"
    made = tmp_path_factory.mktemp("openloop") / "openloop"
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(SOURCE), "-lm"], check=True)
    return made


class Generator:
    """The program with a file of requests."""

    def __init__(self, program: Path, requests: Path) -> None:
        self._program = program
        self._requests = requests

    def start(self, port: int, lines: Sequence[str] = ("/",), *options: str) -> subprocess.Popen[bytes]:
        """Starts a run of half a second, or as the options say. A line is a path, or a path, a tab and a header."""
        self._requests.write_text("".join(f"{line}\n" for line in lines))
        command = [str(self._program), "-r", "400", "-d", "0.5", "-w", "0", "-c", "4", *options]
        return subprocess.Popen([*command, f"{HOST}:{port}", str(self._requests)], stdout=subprocess.PIPE)

    def run(self, port: int, lines: Sequence[str] = ("/",), *options: str) -> Counts:
        return self.read(self.start(port, lines, *options))

    @staticmethod
    def read(process: subprocess.Popen[bytes]) -> Counts:
        """What a run printed. Fails where its counts do not add up."""
        printed, _ = process.communicate(timeout=RUN_SECONDS_MAX)
        assert process.returncode == 0
        counts: Counts = json.loads(printed)
        assert counts["sent"] == counts["answered"] + counts["errors"] + counts["unanswered"]
        assert counts["answered"] == sum(counts["statuses"].values())
        assert counts["p50"] <= counts["p90"] <= counts["p99"] <= counts["p99_9"] <= counts["max"]
        return counts


@pytest.fixture
def generator(program: Path, tmp_path: Path) -> Generator:
    return Generator(program, tmp_path / "requests.txt")


class Server(socketserver.ThreadingTCPServer):
    """A server that counts connections and requests, and answers, or does not, by a plan."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: bytes, first_answer_after_s: float = 0.0) -> None:
        super().__init__((HOST, 0), Asked)
        self.answer = answer
        self.first_answer_after_s = first_answer_after_s
        self.connections = 0
        self.requests = 0
        self.lock = threading.Lock()


class Asked(socketserver.StreamRequestHandler):
    """One connection, which ends where there is no answer."""

    server: Server

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        while self.rfile.readline():
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            with self.server.lock:
                self.server.requests += 1
                is_first = self.server.requests == 1
            if not self.server.answer:
                return
            if is_first:
                time.sleep(self.server.first_answer_after_s)
            self.wfile.write(self.server.answer)


@contextmanager
def serving(answer: bytes = ANSWER, first_answer_after_s: float = 0.0) -> Iterator[Server]:
    with Server(answer, first_answer_after_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def port_of(server: Server) -> int:
    return int(server.server_address[1])


def test_every_request_to_the_service_is_answered_and_counted_by_status(
    generator: Generator, service: Service, key: str
) -> None:
    header = f"Authorization: Bearer {key}"
    lines = [f"/v1/profiles/id/{each}\t{header}" for each in ("12345", "types", "large", "nobody")]
    lines += [f"/v1/profiles/id/12345\t{each}" for each in ("Accept: text/html", "Authorization: Bearer sk_live_no")]
    counts = generator.run(service.port, [*lines, "/livez"])
    assert counts["sent"] > 100
    assert counts["answered"] == counts["measured"] == counts["sent"]
    assert set(counts["statuses"]) == {"200", "401", "404", "413"}
    assert (counts["errors"], counts["unsent"], counts["reconnects"]) == (0, 0, 0)


def test_a_header_for_all_goes_out_with_every_request(generator: Generator, service: Service, key: str) -> None:
    path = "/v1/profiles/id/12345"
    good = generator.run(service.port, [path, f"{path}\tIf-None-Match: *"], "-H", f"Authorization: Bearer {key}")
    assert set(good["statuses"]) == {"200", "304"}
    assert good["answered"] == good["sent"]
    bad = generator.run(service.port, [path], "-H", f"Authorization: Bearer {key}0", "-H", "X-Request-Id: 1")
    assert bad["statuses"] == {"401": bad["sent"]}


def test_the_server_was_asked_as_often_as_the_generator_says(generator: Generator) -> None:
    with serving() as server:
        counts = generator.run(port_of(server))
        assert counts["sent"] == counts["answered"] == server.requests > 100
        assert server.connections == 4


def test_the_warm_up_is_sent_and_not_measured(generator: Generator) -> None:
    with serving() as server:
        counts = generator.run(port_of(server), ["/"], "-w", "0.5")
        assert counts["answered"] == server.requests
        assert 100 < counts["measured"] < counts["answered"] - 100


def test_a_stall_is_charged_to_every_request_that_fell_due_meanwhile(generator: Generator) -> None:
    stall_s = 1.0
    with serving(first_answer_after_s=stall_s) as server:
        counts = generator.run(port_of(server), ["/"], "-c", "1")
    # All fell due within half a second of the first, and none was answered before the stall was over.
    assert counts["waited"] == counts["sent"] - 1 > 100
    assert counts["p50"] > stall_s / 2 * 1e6


def test_requests_that_are_never_answered_are_errors(generator: Generator) -> None:
    with serving(answer=b"") as server:
        counts = generator.run(port_of(server))
        assert counts["errors"] == counts["sent"] == server.requests > 100
        assert counts["reconnects"] == counts["sent"]


@pytest.mark.parametrize(
    ("answer", "status"), [(b"", 0), (ANSWER.replace(b"200 OK", b"503 Not now"), 503), (ANSWER, None)]
)
def test_each_request_that_fails_is_noted_with_its_time_its_status_and_its_port(
    generator: Generator, tmp_path: Path, answer: bytes, status: int | None
) -> None:
    noted, began = tmp_path / "failures", time.monotonic_ns()
    with serving(answer=answer) as server:
        counts = generator.run(port_of(server), ["/"], "-e", str(noted))
    lines = [tuple(map(int, line.split())) for line in noted.read_text().splitlines()]
    assert len(lines) == (0 if status is None else counts["sent"])
    assert {found for _, found, _ in lines} == ({status} - {None})
    assert all(began < at < time.monotonic_ns() and port != port_of(server) and port > 0 for at, _, port in lines)


@pytest.mark.parametrize(
    "answer",
    [
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 abc Hm\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nand more",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000 + b"\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["no HTTP", "no status", "no length", "too long", "a head without end"],
)
def test_an_answer_that_makes_no_sense_is_an_error(generator: Generator, answer: bytes) -> None:
    with serving(answer=answer) as server:
        counts = generator.run(port_of(server))
    assert counts["errors"] == counts["sent"] > 100


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (ANSWER, ("-k", "1")),
        (ANSWER.replace(b"200 OK", b"200 OK\r\nConnection: close"), ()),
    ],
    ids=["as asked for", "as the server says"],
)
def test_each_request_may_have_a_connection_of_its_own(
    generator: Generator, answer: bytes, options: tuple[str, ...]
) -> None:
    with serving(answer) as server:
        counts = generator.run(port_of(server), ["/"], *options)
        assert counts["answered"] == counts["sent"] == counts["reconnects"] == server.requests
        # Those that were opened at first are taken before new ones are made.
        assert server.connections == max(4, counts["sent"])


def test_a_run_that_is_ended_early_tells_what_it_found(generator: Generator) -> None:
    with serving() as server:
        process = generator.start(port_of(server), ["/"], "-d", "3600")
        until(lambda: server.requests > 50, "requests are sent")
        process.send_signal(signal.SIGTERM)
        counts = generator.read(process)
        assert counts["answered"] == counts["sent"] == server.requests
        assert counts["unsent"] == 0


@pytest.mark.parametrize("address", ["10.0.0.1:80", "0.0.0.0:80", "localhost:80", "127.0.0.1", "[::1]:80"])
def test_no_machine_but_this_one_can_be_asked(program: Path, tmp_path: Path, address: str) -> None:
    requests = tmp_path / "requests.txt"
    requests.write_text("/\n")
    ended = subprocess.run([str(program), address, str(requests)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("openloop: ")


@pytest.mark.parametrize(
    "options", [("-r", "0"), ("-r", "nan"), ("-d", "1e9"), ("-c", "0"), ("-c", "10001"), ("-H", "x" * 10_000), ("-z",)]
)
def test_options_that_make_no_sense_are_refused(program: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    requests = tmp_path / "requests.txt"
    requests.write_text("/\n")
    command = [str(program), *options, f"{HOST}:1", str(requests)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
