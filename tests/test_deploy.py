"""What is deployed: systemd's units, by systemd's own measure, the container's file, its lock and its health check."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import Authority
from conftest import MakeService
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from service import Service
from workshop import COMMAND, Ended, Workshop, environment

from edgeprofile import cli, settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
TLS = 'tls_certificate = "server.pem"\ntls_key = "server.key"\nready_delay_seconds = 0'
# Of 100, as systemd-analyze takes it.
EXPOSURE_MAX = 20
CONTAINED = ["unshare", "--pid", "--fork", "--kill-child"]
KEEP_OPEN = """
import pathlib, sys
from edgeprofile.loader.overlay import open_overlay
with open_overlay(pathlib.Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.readline()
"""
ELSEWHERE = "updates.mdb is open in another container, by a process of this one's number"


# --- systemd -------------------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    """A unit's directives; of one that comes several times, the last."""
    parsed = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(path)
    return parsed


def test_there_is_a_unit_for_server_and_loader() -> None:
    assert [path.name for path in UNITS] == ["edgeprofile-loader.service", "edgeprofile-server.service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_exposes_little(path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_there_is_and_is_told_how_it_is(path: Path) -> None:
    service = unit(path)["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "edgeprofile"
    cli.parser().parse_args(arguments)
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) >= 30
    assert service["RestartPreventExitStatus"] == "2"
    assert service["User"] == service["Group"] == "edgeprofile"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_has_no_directive_that_systemd_does_not_know(path: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "edgeprofile is not executable" not in line] == []


def test_the_server_is_given_the_time_that_its_end_takes() -> None:
    server = settings.Server()
    bound_s = server.ready_delay_seconds + server.drain_seconds
    assert int(unit(DEPLOY / "edgeprofile-server.service")["Service"]["TimeoutStopSec"]) > bound_s + 5


# --- the container -------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, each with all that belongs to it on one line."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


def test_the_container_runs_as_nobody_in_particular_and_can_be_asked_for_its_health() -> None:
    last = dict(instructions())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["VOLUME"] == "/var/lib/edgeprofile"
    assert "healthcheck.py" in last["HEALTHCHECK"]
    cli.parser().parse_args(re.findall(r'"([^"]+)"', last["CMD"]))


def test_the_container_installs_nothing_that_is_not_pinned() -> None:
    runs = [run for name, run in instructions() if name == "RUN"]
    installs = [step for run in runs for step in run.split("&&") if "pip" in step and re.search("install|wheel", step)]
    assert len(installs) == 4
    assert all("--require-hashes" in step or "--no-index" in step for step in installs)


def test_the_container_is_built_of_files_that_there_are_and_that_are_sent() -> None:
    sent = set(re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    copied = {
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / source).exists() for source in sent)


@contextlib.contextmanager
def overlay_open_elsewhere(home: Path) -> Iterator[None]:
    """Has process 1 of another PID namespace keep the overlay open, as a watcher in its container does."""
    command = [*CONTAINED, sys.executable, "-c", KEEP_OPEN, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield
        process.stdin.close()


def contained(shop: Workshop, *arguments: str) -> Ended:
    """Runs a command as process 1 of a PID namespace, as `docker run` does."""
    command = [*CONTAINED, *COMMAND, *arguments]
    done = subprocess.run(command, cwd=shop.folder, env=environment(), capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_container_in_which_a_process_has_the_watchers_number_is_told_so(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 'ann' AS id")
    shop.load()
    with overlay_open_elsewhere(shop.home):
        loaded = contained(shop, "load")
        assert loaded.status == 1
        assert loaded.complaints == [f"edgeprofile: shop: {ELSEWHERE}"]
        assert "its PID namespace" in loaded.err
        told = contained(shop, "status", "--json")
        assert (told.status, json.loads(told.out)[0]["problem"]) == (1, ELSEWHERE)
        # Of this namespace, no process has that number.
        assert shop.run("status").status == 0
        assert shop.run("load").status == 0
    assert contained(shop, "load").status == 0
    assert contained(shop, "status").status == 0


def locked(name: str) -> dict[str, tuple[str, int]]:
    """By a package's name, its version and the number of hashes."""
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"\w", line)]
    found = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {canonicalize_name(m[1]): (m[2], line.count("sha256:")) for m, line in zip(found, lines, strict=True) if m}


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_the_lock_has_what_the_project_needs(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["build-system"]["requires"] if name.startswith("build") else project["project"]["dependencies"]
    pinned = locked(name)
    for requirement in map(Requirement, needed):
        version, _ = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement.name}: make lock"
    assert all(hashes > 0 for _, hashes in pinned.values())


# --- the health check ----------------------------------------------------------------------------------------------


def health(service: Service) -> tuple[int, str]:
    command = [sys.executable, str(DEPLOY / "healthcheck.py")]
    environ = os.environ | {"EDGEPROFILE_CONFIG": str(service.file)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_server_that_answers_is_healthy_and_one_that_is_gone_is_not(make_service: MakeService, host: str) -> None:
    service = make_service(server=f'host = "{host}"\nready_delay_seconds = 0')
    service.start(ready=503)
    assert health(service) == (0, "")
    service.stop()
    status, line = health(service)
    assert (status, line.count("\n")) == (1, 1)
    assert "refused" in line


@pytest.mark.parametrize("is_mutual", [False, True])
def test_a_server_that_speaks_tls_is_healthy_whomever_it_wants_to_see(
    make_service: MakeService, is_mutual: bool
) -> None:
    authority = Authority()
    service = make_service(server=TLS + '\ntls_client_ca = "root.pem"' * is_mutual)
    authority.issue().write(service.folder, "server")
    authority.root.write(service.folder, "root")
    service.context = authority.client(authority.issue().write(service.folder, "client"))
    service.start(ready=503)
    assert health(service) == (0, "")
    service.stop()
    assert health(service)[0] == 1


def test_wrong_settings_are_not_healthy(make_service: MakeService) -> None:
    service = make_service()
    service.file.write_text("xyzzy = 1")
    status, line = health(service)
    assert (status, line.count("\n")) == (1, 1)
    assert "xyzzy" in line
